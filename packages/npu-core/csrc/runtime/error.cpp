#include "error.h"

#include <c10/util/Exception.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <new>
#include <stdexcept>
#include <string_view>

#include "device.h"
#include "driver_loader.h"
#include "stream_table.h"

namespace npu {
namespace {

struct CodeText {
  ErrorCode code;
  const char* text;
};

constexpr CodeText kCodeTexts[] = {
    {ErrorCode::PARAM, "invalid parameter"},
    {ErrorCode::TYPE, "invalid type"},
    {ErrorCode::VALUE, "invalid value"},
    {ErrorCode::PTR, "invalid pointer"},
    {ErrorCode::INTERNAL, "internal error"},
    {ErrorCode::MEMORY, "memory error"},
    {ErrorCode::NOT_SUPPORT, "feature not supported"},
    {ErrorCode::NOT_FOUND, "resource not found"},
    {ErrorCode::UNAVAIL, "resource unavailable"},
    {ErrorCode::SYSCALL, "system call failed"},
    {ErrorCode::TIMEOUT, "timeout error"},
    {ErrorCode::PERMISSION, "permission error"},
    {ErrorCode::ACL, "call acl api failed"},
    {ErrorCode::HCCL, "call hccl api failed"},
};

const char* code_text(ErrorCode code) {
  for (const CodeText& entry : kCodeTexts)
    if (entry.code == code) return entry.text;
  return "application exception";
}

const char* module_name(Submodule submodule) {
  switch (submodule) {
    case Submodule::PTA:
      return "PTA";
    case Submodule::OPS:
      return "OPS";
    case Submodule::DIST:
      return "DIST";
    case Submodule::GRAPH:
      return "GRAPH";
    case Submodule::PROF:
      return "PROF";
  }
  return "UNKNOWN";
}

bool is_set(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && std::strcmp(value, "1") == 0;
}

// Number and meaning that users' tools look up for a failed device call.
struct DeviceCode {
  int number;
  const char* meaning;
};

DeviceCode device_code(int status) {
  switch (status) {
    case NPU_ERROR_INVALID_ARGUMENT:
      return {107000, "a parameter is invalid"};
    case NPU_ERROR_OUT_OF_MEMORY:
      return {207001, "the device is out of memory"};
    case NPU_ERROR_NOT_SUPPORTED:
      return {207000, "the driver does not support this"};
    case NPU_ERROR_NOT_READY:
      return {207003, "the work is not complete"};
    case NPU_ERROR_TASK_FAILED:
      return {507000, "a task on the stream failed"};
    case NPU_ERROR_TIMEOUT:
      return {107020, "the wait timed out"};
    case NPU_ERROR_STOPPED:
      return {107002, "the driver has been shut down"};
    default:
      return {507899, "the driver failed"};
  }
}

[[noreturn]] void throw_status(int status, const char* where, std::string text) {
  const c10::SourceLocation location{where, "npu", 0};
  switch (status) {
    case NPU_ERROR_INDEX:
      throw c10::IndexError(location, std::move(text));
    case NPU_ERROR_INVALID_ARGUMENT:
      throw c10::ValueError(location, std::move(text));
    case NPU_ERROR_TYPE:
      throw c10::TypeError(location, std::move(text));
    case NPU_ERROR_NOT_SUPPORTED:
      throw c10::NotImplementedError(location, std::move(text));
    case NPU_ERROR_OUT_OF_MEMORY:
      throw c10::OutOfMemoryError(location, std::move(text));
    default:
      throw c10::Error(location, std::move(text));
  }
}

npu_status fill(npu_error* error, npu_status status, std::string_view text) noexcept {
  constexpr std::string_view kCut = " ... (cut)";
  error->status = status;
  std::size_t length = text.size();
  if (length >= sizeof(error->message)) {
    length = sizeof(error->message) - 1 - kCut.size();
    std::memcpy(error->message + length, kCut.data(), kCut.size());
    error->message[length + kCut.size()] = '\0';
  } else {
    error->message[length] = '\0';
  }
  std::memcpy(error->message, text.data(), length);
  return status;
}

}  // namespace

std::string error_suffix(Submodule submodule, ErrorCode code) {
  if (is_set("TORCH_NPU_COMPACT_ERROR_OUTPUT")) return "";
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  char time[32];
  std::strftime(time, sizeof(time), "%Y-%m-%d-%H:%M:%S", &local);
  // Tools read the rank with \d*, so anything but a number counts as absent.
  const char* rank_text = std::getenv("RANK");
  char* end = nullptr;
  long rank = rank_text == nullptr ? -1 : std::strtol(rank_text, &end, 10);
  if (rank_text != nullptr && (end == rank_text || *end != '\0')) rank = -1;
  char line[192];
  std::snprintf(line, sizeof(line), "\n[ERROR] %s (PID:%d, Device:%d, RankID:%ld) ERR%02d%03d %s %s", time, getpid(),
                is_initialized() ? current_device() : -1, rank, static_cast<int>(submodule), static_cast<int>(code),
                module_name(submodule), code_text(code));
  return line;
}

bool warnings_wanted() noexcept {
  const char* rank = std::getenv("RANK");
  return !is_set("TORCH_NPU_WARNING_DISABLE") && (rank == nullptr || *rank == '\0' || std::strcmp(rank, "0") == 0);
}

void throw_task_error(const npu_error& error, const char* context) {
  std::string text;
  if (error.op[0] != '\0') text = std::string(error.op) + ": ";
  text += error.message[0] == '\0' ? device_code(error.status).meaning : error.message;
  const bool stopped = error.status == NPU_ERROR_STOPPED;  // whoever is told has not called anything wrong
  if (!stopped && !is_set("ASCEND_LAUNCH_BLOCKING"))
    text += std::string("\nThe operator ran asynchronously and its error was found by ") + context +
            ", so the stack shown here may not be where it was called. Set the environment variable "
            "ASCEND_LAUNCH_BLOCKING=1 to get the real one.";
  text += error_suffix(Submodule::PTA, ErrorCode::ACL);
  throw_status(error.status, context, std::move(text));
}

void throw_driver_error(npu_status status, const char* call) {
  const DeviceCode code = device_code(status);
  const char* detail = driver().last_error();
  // Frameworks that recover from faults look at the first words.
  if (status == NPU_ERROR_STOPPED && detail != nullptr &&
      std::strncmp(detail, kForceStop, std::strlen(kForceStop)) == 0) {
    throw_status(NPU_ERROR_TASK_FAILED, call, detail + error_suffix(Submodule::PTA, ErrorCode::ACL));
  }
  std::string text = std::string("NPU function error: ") + call + ", error code is " + std::to_string(code.number) +
                     error_suffix(Submodule::PTA, ErrorCode::ACL) + "\n[Error]: " + code.meaning + ". ";
  if (detail != nullptr) text += detail;
  // A refused direct call is a RuntimeError to users, except for the two that Python code commonly catches by class.
  const bool keeps_class = status == NPU_ERROR_OUT_OF_MEMORY || status == NPU_ERROR_NOT_SUPPORTED;
  throw_status(keeps_class ? status : NPU_ERROR_TASK_FAILED, call, std::move(text));
}

npu_status capture_exception(npu_error* error) noexcept {
  try {
    throw;
  } catch (const c10::IndexError& e) {
    return fill(error, NPU_ERROR_INDEX, e.what_without_backtrace());
  } catch (const c10::ValueError& e) {
    return fill(error, NPU_ERROR_INVALID_ARGUMENT, e.what_without_backtrace());
  } catch (const c10::TypeError& e) {
    return fill(error, NPU_ERROR_TYPE, e.what_without_backtrace());
  } catch (const c10::NotImplementedError& e) {
    return fill(error, NPU_ERROR_NOT_SUPPORTED, e.what_without_backtrace());
  } catch (const c10::OutOfMemoryError& e) {
    return fill(error, NPU_ERROR_OUT_OF_MEMORY, e.what_without_backtrace());
  } catch (const c10::Error& e) {
    return fill(error, NPU_ERROR_TASK_FAILED, e.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    return fill(error, NPU_ERROR_OUT_OF_MEMORY, "the host is out of memory");
  } catch (const std::out_of_range& e) {
    return fill(error, NPU_ERROR_INDEX, e.what());
  } catch (const std::invalid_argument& e) {
    return fill(error, NPU_ERROR_INVALID_ARGUMENT, e.what());
  } catch (const std::exception& e) {
    return fill(error, NPU_ERROR_TASK_FAILED, e.what());
  } catch (...) {
    return fill(error, NPU_ERROR_TASK_FAILED, "an exception of unknown type was thrown");
  }
}

}  // namespace npu
