/* npu/kernels/dtype_argument.h: arguments that name a dtype by number (`int? dst_type`).
 *
 * A torch.dtype passed for an int argument arrives as its ScalarType number.  Numbers from 256 on are dtypes that only
 * npu has: 256 + the code of the Ascend runtime, as torch_npu.int4 and its siblings carry them.
 */
#ifndef NPU_KERNELS_DTYPE_ARGUMENT_H_
#define NPU_KERNELS_DTYPE_ARGUMENT_H_

#include <initializer_list>
#include <optional>

#include "npu/kernels/arguments.h"
#include "npu/kernels/dtype.h"

namespace npu::kernels {

/// Name of the dtype with the number `number`: "int8", "torch_npu.hifloat8", "number 999".
inline std::string dtype_argument_name(int64_t number) {
  switch (number) {
    case 285:
      return "torch_npu.int4";
    case 290:
      return "torch_npu.hifloat8";
    case 291:
      return "torch_npu.float8_e5m2";
    case 292:
      return "torch_npu.float8_e4m3fn";
    case 293:
      return "torch_npu.float8_e8m0fnu";
    case 296:
      return "torch_npu.float4_e2m1fn_x2";
    case 297:
      return "torch_npu.float4_e1m2fn_x2";
    default:
      break;
  }
  if (number >= 0 && number <= 45) return npu_dtype_name(static_cast<npu_dtype>(number));
  return text("number ", number, ", which is no dtype");
}

/// The dtype that `number` names, one of `accepted`; `fallback` when the argument is None.
///
/// Other names of one dtype become one: qint8 -> int8, quint8 -> uint8, qint32 -> int32, torch_npu.int4 -> quint4x2
/// (NPU_QUINT4X2 stands for int4), torch_npu.float8_e5m2 -> float8_e5m2 and so on.
inline npu_dtype dtype_argument(const char* op, const char* argument, std::optional<int64_t> number, npu_dtype fallback,
                                std::initializer_list<npu_dtype> accepted) {
  if (!number.has_value()) return fallback;
  int64_t dtype = *number;
  switch (dtype) {
    case 12:
      dtype = NPU_INT8;
      break;
    case 13:
      dtype = NPU_UINT8;
      break;
    case 14:
      dtype = NPU_INT32;
      break;
    case 285:
      dtype = NPU_QUINT4X2;
      break;
    case 291:
      dtype = NPU_FLOAT8_E5M2;
      break;
    case 292:
      dtype = NPU_FLOAT8_E4M3FN;
      break;
    default:
      break;
  }
  std::string names;
  for (npu_dtype one : accepted) {
    if (one == dtype) return one;
    names += (names.empty() ? "" : ", ") + std::string(npu_dtype_name(one));
  }
  bool hardware_only = *number == 290 || *number == 293 || *number == 296 || *number == 297;
  NPU_CHECK_ARG(false, op, argument, "expected one of ", names, ", got ", dtype_argument_name(*number),
                hardware_only ? ", which is not supported on this device" : "");
  return fallback;
}

}  // namespace npu::kernels

#endif  // NPU_KERNELS_DTYPE_ARGUMENT_H_
