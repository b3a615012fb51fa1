/* npu/kernels/deprecation.h: the once-per-process warning of deprecated ops.
 *
 * It has to be a Python UserWarning that filters and pytest see.  torch's stable aoti_torch_warn only prints to stderr
 * when an op is called through torch.ops, and a Python wrapper would make torch_npu.<op> something else than
 * torch.ops.npu.<op>.  So the op asks the interpreter itself: the four functions are in CPython's stable ABI and weak
 * here, the library therefore still links nothing of Python and loads without it.
 */
#ifndef NPU_KERNELS_DEPRECATION_H_
#define NPU_KERNELS_DEPRECATION_H_

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

extern "C" {
__attribute__((weak)) int Py_IsInitialized(void);
__attribute__((weak)) int PyGILState_Ensure(void);
__attribute__((weak)) void PyGILState_Release(int);
__attribute__((weak)) int PyErr_WarnEx(void* category, const char* message, ptrdiff_t stack_level);
__attribute__((weak)) void PyErr_Clear(void);
__attribute__((weak)) extern void* PyExc_UserWarning;
}

namespace npu::kernels {

/// TORCH_NPU_WARNING_DISABLE=1 (older name TORCH_NPU_DISABLED_WARNING), or another rank than the first.
inline bool warnings_disabled() {
  for (const char* name : {"TORCH_NPU_WARNING_DISABLE", "TORCH_NPU_DISABLED_WARNING"}) {
    const char* value = std::getenv(name);
    if (value != nullptr && std::strcmp(value, "1") == 0) return true;
  }
  const char* rank = std::getenv("RANK");
  return rank != nullptr && std::atoi(rank) != 0;
}

/// Emits `message` as a UserWarning at the caller of the op.  When the user turned warnings into errors, throws.
inline void warn_user(const std::string& message) {
  if (warnings_disabled()) return;
  if (Py_IsInitialized == nullptr || PyErr_WarnEx == nullptr || !Py_IsInitialized()) {
    aoti_torch_warn("npu", __FILE__, __LINE__, message.c_str());
    return;
  }
  int state = PyGILState_Ensure();
  // Two Python frames up: torch/_ops.py is the first.
  bool raised = PyErr_WarnEx(PyExc_UserWarning, message.c_str(), 2) != 0;
  if (raised) PyErr_Clear();  // a C++ exception carries the text across torch
  PyGILState_Release(state);
  if (raised) throw std::runtime_error(message);
}

/// Warns on the first call with this `done` flag.  `advice` is appended as it is.
inline void warn_deprecated_once(std::atomic<bool>& done, const char* op, const char* advice = "") {
  if (done.load(std::memory_order_relaxed) || done.exchange(true)) return;
  warn_user(std::string("torch_npu.") + op + " is deprecated and will be removed in future version." + advice);
}

}  // namespace npu::kernels

#endif  // NPU_KERNELS_DEPRECATION_H_
