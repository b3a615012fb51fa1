#include "error.h"

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace npu::host {
namespace {

thread_local char text_of_last_error[NPU_ERROR_MESSAGE_SIZE] = "";

}  // namespace

npu_status fail(npu_status status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  // Through a second buffer: an argument may be the previous text.
  char text[sizeof(text_of_last_error)];
  vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  memcpy(text_of_last_error, text, sizeof(text));
  return status;
}

npu_status fail_errno(const char* format, ...) {
  int code = errno;
  char text[sizeof(text_of_last_error) - 256];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  char reason[128];
  return fail(NPU_ERROR_SYSTEM, "%s: %s (errno %d)", text, strerror_r(code, reason, sizeof(reason)), code);
}

const char* last_error() { return text_of_last_error; }

void export_last_error(npu_status status, npu_error* error) {
  if (error == nullptr) return;
  error->status = status;
  error->reserved = 0;
  error->op[0] = '\0';
  copy_text(error->message, sizeof(error->message), text_of_last_error);
}

void copy_text(char* target, size_t size, const char* text) {
  size_t length = strnlen(text, size - 1);
  memcpy(target, text, length);
  target[length] = '\0';
}

}  // namespace npu::host
