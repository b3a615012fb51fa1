/* npu/kernels/stable_tensor.h: tensors through torch's stable ABI.
 *
 * Include this instead of torch's own stable headers: it also repairs the text of failing torch calls.
 */
#ifndef NPU_KERNELS_STABLE_TENSOR_H_
#define NPU_KERNELS_STABLE_TENSOR_H_

#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "npu/kernels/arguments.h"
#include "npu/kernels/dtype.h"

/* Exists from torch 2.13 on.  Weak, so that one library loads in every torch from 2.11. */
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace npu::kernels {

[[noreturn]] __attribute__((noinline, cold)) inline void raise_torch_failure(const char* call) {
  if (torch_exception_get_what_without_backtrace != nullptr) {
    throw std::runtime_error(torch_exception_get_what_without_backtrace());
  }
  throw std::runtime_error(std::string("a call into torch failed, the reason is on stderr: ") + call);
}

}  // namespace npu::kernels

/* torch's own macro loses the text of the error before 2.13 and prints it with a backtrace since. */
#undef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK(call)     \
  if ((call) != TORCH_SUCCESS) {                \
    ::npu::kernels::raise_torch_failure(#call); \
  }

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace npu::kernels {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

static_assert(NPU_FLOAT16 == static_cast<int>(torch::headeronly::ScalarType::Half));
static_assert(NPU_FLOAT32 == static_cast<int>(torch::headeronly::ScalarType::Float));
static_assert(NPU_FLOAT64 == static_cast<int>(torch::headeronly::ScalarType::Double));
static_assert(NPU_BFLOAT16 == static_cast<int>(torch::headeronly::ScalarType::BFloat16));

/// Where a tensor lives.
struct Device {
  int32_t type;   ///< torch's DeviceType number
  int32_t index;  ///< -1 for the CPU

  bool is_cpu() const { return type == static_cast<int32_t>(torch::headeronly::DeviceType::CPU); }
  bool is_npu() const { return type == static_cast<int32_t>(torch::headeronly::DeviceType::PrivateUse1); }
  bool operator==(const Device& other) const { return type == other.type && index == other.index; }

  std::string name() const {
    if (is_cpu()) return "cpu";
    if (is_npu()) return text("npu:", index);
    return text("device type ", type, " index ", index);
  }
};

inline Device device_of(const Tensor& tensor) {
  Device device{};
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &device.type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &device.index));
  if (device.is_cpu()) device.index = -1;
  return device;
}

inline npu_dtype dtype_of(const Tensor& tensor) {
  int32_t dtype = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  return dtype;
}

/// "[2, 3]"
inline std::string shape_text(Sizes sizes) {
  std::string out = "[";
  for (size_t i = 0; i < sizes.size(); ++i) out += (i ? ", " : "") + std::to_string(sizes[i]);
  return out + "]";
}

inline int64_t bytes_of(const Tensor& tensor) { return tensor.numel() * static_cast<int64_t>(tensor.element_size()); }

inline bool same_sizes(Sizes a, Sizes b) { return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin()); }

/// Product of the sizes.
inline int64_t count_of(Sizes sizes) {
  int64_t count = 1;
  for (int64_t size : sizes) count *= size;
  return count;
}

/// An uninitialised contiguous tensor.  aoti_torch_empty_strided: 208 ns, against 550 for empty_like and 660 for
/// new_empty.
inline Tensor allocate(Sizes sizes, npu_dtype dtype, const Device& device) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = step;
    step *= sizes[i] > 1 ? sizes[i] : 1;
  }
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                         strides.data(), dtype, device.type,
                                                         device.is_cpu() ? 0 : device.index, &handle));
  return Tensor(handle);
}

/// The tensor itself when it is contiguous, else a contiguous copy made on the current stream.
inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline OptionalTensor as_contiguous(const OptionalTensor& tensor) {
  return tensor.has_value() ? OptionalTensor(as_contiguous(*tensor)) : std::nullopt;
}

/// Address of the first element, NULL for None.
inline void* pointer_or_null(const OptionalTensor& tensor) { return tensor.has_value() ? tensor->data_ptr() : nullptr; }

/// Raises unless the tensor has one of the dtypes `accepted`.
inline void check_dtype(const char* op, const char* argument, const Tensor& tensor,
                        std::initializer_list<npu_dtype> accepted) {
  npu_dtype dtype = dtype_of(tensor);
  if (std::find(accepted.begin(), accepted.end(), dtype) != accepted.end()) return;
  std::string names;
  size_t left = accepted.size();
  for (npu_dtype one : accepted) {
    names += npu_dtype_name(one);
    if (--left > 0) names += left > 1 ? ", " : " or ";
  }
  NPU_CHECK_ARG(false, op, argument, "expected dtype ", names, ", got ", npu_dtype_name(dtype));
}

/// Raises unless the tensor has exactly these sizes; `meaning` says what they are: "(tokens, hidden)".
inline void check_sizes(const char* op, const char* argument, const Tensor& tensor, Sizes expected,
                        const char* meaning = "") {
  if (same_sizes(tensor.sizes(), expected)) return;
  NPU_CHECK_ARG(false, op, argument, "expected shape ", shape_text(expected), *meaning ? " " : "", meaning, ", got ",
                shape_text(tensor.sizes()));
}

/// Raises torch's well-known message unless `other` (called `argument`) is on `device`.
inline void check_same_device(const char* op, const Device& device, const char* argument, const Tensor& other) {
  Device found = device_of(other);
  if (found == device) return;
  throw std::runtime_error(text("Expected all tensors to be on the same device, but found at least two devices, ",
                                device.name(), " and ", found.name(), "! (when checking argument ", argument, " of ",
                                op, ")", error_code_line("01001 OPS invalid parameter")));
}

inline void check_same_device(const char* op, const Device& device, const char* argument, const OptionalTensor& other) {
  if (other.has_value()) check_same_device(op, device, argument, *other);
}

/// Throws `message` as what it was before the dispatcher carried it: of an exception of a kernel in Python it makes
/// "IndexError: text\n\nAt:\n" and the frames.
[[noreturn]] __attribute__((noinline, cold)) inline void rethrow_as_raised(std::string message) {
  const size_t frames = message.find("\n\nAt:\n");
  if (frames == std::string::npos) throw std::runtime_error(message);
  message.resize(frames);
  const size_t colon = message.find(": ");
  const std::string type = message.substr(0, colon);
  if (type == "RuntimeError" || type == "IndexError" || type == "ValueError") message.erase(0, colon + 2);
  if (type == "IndexError") throw std::out_of_range(message);
  if (type == "ValueError") throw std::invalid_argument(message);
  throw std::runtime_error(message);
}

/// Calls an operator that returns nothing through the dispatcher: `call_operator("npu::_npu_silu_", self)`.  The public
/// in-place operators are composites over such operators, which is what functionalisation understands.
template <class... Arguments>
void call_operator(const char* name, const Arguments&... arguments) {
  StableIValue stack[sizeof...(arguments)] = {torch::stable::detail::from(arguments)...};
  try {
    STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack, TORCH_ABI_VERSION));
  } catch (const std::runtime_error& error) {
    rethrow_as_raised(error.what());
  }
}

}  // namespace npu::kernels

#endif  // NPU_KERNELS_STABLE_TENSOR_H_
