#include "runtime/error.h"

#include <c10/util/Exception.h>

#include <cstring>
#include <new>
#include <regex>
#include <stdexcept>

#include "harness.h"
#include "runtime/device.h"

namespace {

npu_error task_error(npu_status status, const char* op, const char* message) {
  npu_error error{};
  error.status = status;
  std::strcpy(error.op, op);
  std::strcpy(error.message, message);
  return error;
}

template <typename Body>
npu_error captured(Body body) {
  npu_error error{};
  try {
    body();
  } catch (...) {
    CHECK_EQ(npu::capture_exception(&error), error.status);
  }
  return error;
}

}  // namespace

NPU_TEST(suffixes_have_the_form_tools_parse) {
  const std::regex form(R"(\n\[ERROR\] [0-9\-\:]* \(PID:\d*, Device:\-?\d*, RankID:\-?\d*\) ERR\d{5} [A-Z]+ [a-z ]+)");
  const std::string suffix = npu::error_suffix(npu::Submodule::PTA, npu::ErrorCode::PARAM);
  CHECK(std::regex_match(suffix, form));
  CHECK(suffix.find("Device:-1, RankID:-1) ERR00001 PTA invalid parameter") != std::string::npos);
  CHECK(npu::error_suffix(npu::Submodule::DIST, npu::ErrorCode::HCCL).find("ERR02200 DIST call hccl api failed") !=
        std::string::npos);
  CHECK(npu::error_suffix(npu::Submodule::OPS, npu::ErrorCode::TYPE).find("ERR01002 OPS invalid type") !=
        std::string::npos);
  npu::set_device(1);
  CHECK(npu::error_suffix(npu::Submodule::PTA, npu::ErrorCode::ACL).find("Device:1, ") != std::string::npos);
}

NPU_TEST(suffixes_name_the_rank, {"RANK", "7"}) {
  CHECK(npu::error_suffix(npu::Submodule::PTA, npu::ErrorCode::PARAM).find("RankID:7)") != std::string::npos);
}

NPU_TEST(compact_output_drops_the_suffix, {"TORCH_NPU_COMPACT_ERROR_OUTPUT", "1"}) {
  CHECK_EQ(npu::error_suffix(npu::Submodule::PTA, npu::ErrorCode::PARAM), "");
}

NPU_TEST(task_errors_keep_their_class) {
  using npu::throw_task_error;
  CHECK_THROWS(c10::IndexError, throw_task_error(task_error(NPU_ERROR_INDEX, "aten::index", "7 is out"), "sync"),
               "aten::index: 7 is out");
  CHECK_THROWS(c10::ValueError, throw_task_error(task_error(NPU_ERROR_INVALID_ARGUMENT, "a", "b"), "sync"), "a: b");
  CHECK_THROWS(c10::TypeError, throw_task_error(task_error(NPU_ERROR_TYPE, "a", "b"), "sync"), "a: b");
  CHECK_THROWS(c10::NotImplementedError, throw_task_error(task_error(NPU_ERROR_NOT_SUPPORTED, "a", "b"), "sync"), "a");
  CHECK_THROWS(c10::OutOfMemoryError, throw_task_error(task_error(NPU_ERROR_OUT_OF_MEMORY, "a", "b"), "sync"), "a");
  CHECK_THROWS(c10::Error, throw_task_error(task_error(NPU_ERROR_TASK_FAILED, "a", "b"), "sync"), "ERR00100");
  CHECK_THROWS(c10::Error, throw_task_error(task_error(NPU_ERROR_TASK_FAILED, "a", "b"), "synchronize"),
               "found by synchronize");
  CHECK_THROWS(c10::Error, throw_task_error(task_error(NPU_ERROR_TASK_FAILED, "a", "b"), "x"),
               "ASCEND_LAUNCH_BLOCKING=1");
}

NPU_TEST(blocking_launches_need_no_hint, {"ASCEND_LAUNCH_BLOCKING", "1"}) {
  try {
    npu::throw_task_error(task_error(NPU_ERROR_TASK_FAILED, "a", "b"), "launch");
  } catch (const c10::Error& error) {
    CHECK(std::string(error.what()).find("ASCEND_LAUNCH_BLOCKING") == std::string::npos);
  }
}

NPU_TEST(driver_errors_name_the_call) {
  CHECK_THROWS(c10::Error, npu::check(NPU_ERROR_INVALID_ARGUMENT, "memory_map"),
               "NPU function error: memory_map, error code is 107000");
  CHECK_THROWS(c10::OutOfMemoryError, npu::check(NPU_ERROR_OUT_OF_MEMORY, "memory_map"), "207001");
  CHECK_THROWS(c10::NotImplementedError, npu::check(NPU_ERROR_NOT_SUPPORTED, "memory_export"), "memory_export");
  npu::check(NPU_OK, "nothing");
}

NPU_TEST(exceptions_become_statuses) {
  const auto status = [](auto body) { return captured(body).status; };
  CHECK_EQ(status([] { TORCH_CHECK_INDEX(false, "x"); }), NPU_ERROR_INDEX);
  CHECK_EQ(status([] { TORCH_CHECK_VALUE(false, "x"); }), NPU_ERROR_INVALID_ARGUMENT);
  CHECK_EQ(status([] { TORCH_CHECK_TYPE(false, "x"); }), NPU_ERROR_TYPE);
  CHECK_EQ(status([] { TORCH_CHECK_NOT_IMPLEMENTED(false, "x"); }), NPU_ERROR_NOT_SUPPORTED);
  CHECK_EQ(status([] { TORCH_CHECK_WITH(OutOfMemoryError, false, "x"); }), NPU_ERROR_OUT_OF_MEMORY);
  CHECK_EQ(status([] { TORCH_CHECK(false, "x"); }), NPU_ERROR_TASK_FAILED);
  CHECK_EQ(status([] { throw std::bad_alloc(); }), NPU_ERROR_OUT_OF_MEMORY);
  CHECK_EQ(status([] { throw std::out_of_range("x"); }), NPU_ERROR_INDEX);
  CHECK_EQ(status([] { throw std::invalid_argument("x"); }), NPU_ERROR_INVALID_ARGUMENT);
  CHECK_EQ(status([] { throw std::runtime_error("x"); }), NPU_ERROR_TASK_FAILED);
  CHECK_EQ(status([] { throw 3; }), NPU_ERROR_TASK_FAILED);
}

NPU_TEST(captured_texts_carry_no_backtrace) {
  const npu_error error = captured([] { TORCH_CHECK(false, "index ", 7, " is out of range"); });
  CHECK_EQ(std::string(error.message), "index 7 is out of range");
  const npu_error cut = captured([] { TORCH_CHECK(false, std::string(10'000, 'y')); });
  CHECK_EQ(std::strlen(cut.message), sizeof(cut.message) - 1);
  CHECK(std::string(cut.message).ends_with("y ... (cut)"));
}
