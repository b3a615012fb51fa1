/* npu/kernels/strings.h: string arguments of ops.
 *
 * torch's own conversion of the stable ABI leaks every string, so ops take this type:
 *
 *   Tensor gelu(const Tensor& self, String approximate);              // str approximate='none'
 *   Tensor quant(const Tensor& x, std::optional<String> round_mode);  // str? round_mode='rint'
 */
#ifndef NPU_KERNELS_STRINGS_H_
#define NPU_KERNELS_STRINGS_H_

#include <string>

#include "npu/kernels/stable_tensor.h"

namespace npu::kernels {

struct String {
  std::string value;
};

inline bool operator==(const String& string, const char* text) { return string.value == text; }

}  // namespace npu::kernels

HIDDEN_NAMESPACE_BEGIN(torch, stable, detail)

template <>
struct ToImpl<npu::kernels::String> {
  static npu::kernels::String call(StableIValue value, uint64_t, bool) {
    StringHandle handle = to<StringHandle>(value);
    size_t length = 0;
    const char* data = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    npu::kernels::String string{std::string(data, length)};
    STABLE_TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return string;
  }
};

HIDDEN_NAMESPACE_END(torch, stable, detail)

#endif  // NPU_KERNELS_STRINGS_H_
