/* npu/kernels/dtype.h: element types as kernels and payloads name them.
 *
 * The numbers are torch's ScalarType numbers, which its stable ABI fixes, so that no conversion table is needed.
 * Plain C, because kernel files may include nothing of C++ (see lanes.h).
 */
#ifndef NPU_KERNELS_DTYPE_H_
#define NPU_KERNELS_DTYPE_H_

#include <stdint.h>

typedef int32_t npu_dtype;

enum {
  NPU_UINT8 = 0,
  NPU_INT8 = 1,
  NPU_INT16 = 2,
  NPU_INT32 = 3,
  NPU_INT64 = 4,
  NPU_FLOAT16 = 5,
  NPU_FLOAT32 = 6,
  NPU_FLOAT64 = 7,
  NPU_BOOL = 11,
  NPU_BFLOAT16 = 15,
  NPU_QUINT4X2 = 16, /* only as an argument: int4, stored packed in wider integers */
  NPU_FLOAT8_E5M2 = 23,
  NPU_FLOAT8_E4M3FN = 24
};

/* Bytes of one element, or 0 for a type this header does not know. */
static inline int64_t npu_dtype_size(npu_dtype dtype) {
  switch (dtype) {
    case NPU_UINT8:
    case NPU_INT8:
    case NPU_BOOL:
    case NPU_FLOAT8_E5M2:
    case NPU_FLOAT8_E4M3FN:
      return 1;
    case NPU_INT16:
    case NPU_FLOAT16:
    case NPU_BFLOAT16:
      return 2;
    case NPU_INT32:
    case NPU_FLOAT32:
      return 4;
    case NPU_INT64:
    case NPU_FLOAT64:
      return 8;
    default:
      return 0;
  }
}

/* The name Python users know ("torch." left out). */
static inline const char* npu_dtype_name(npu_dtype dtype) {
  switch (dtype) {
    case NPU_UINT8:
      return "uint8";
    case NPU_INT8:
      return "int8";
    case NPU_INT16:
      return "int16";
    case NPU_INT32:
      return "int32";
    case NPU_INT64:
      return "int64";
    case NPU_FLOAT16:
      return "float16";
    case NPU_FLOAT32:
      return "float32";
    case NPU_FLOAT64:
      return "float64";
    case 8:
      return "complex32";
    case 9:
      return "complex64";
    case 10:
      return "complex128";
    case NPU_BOOL:
      return "bool";
    case 12:
      return "qint8";
    case 13:
      return "quint8";
    case 14:
      return "qint32";
    case NPU_BFLOAT16:
      return "bfloat16";
    case NPU_QUINT4X2:
      return "quint4x2";
    case NPU_FLOAT8_E5M2:
      return "float8_e5m2";
    case NPU_FLOAT8_E4M3FN:
      return "float8_e4m3fn";
    case 25:
      return "float8_e5m2fnuz";
    case 26:
      return "float8_e4m3fnuz";
    case 27:
      return "uint16";
    case 28:
      return "uint32";
    case 29:
      return "uint64";
    case 44:
      return "float8_e8m0fnu";
    case 45:
      return "float4_e2m1fn_x2";
    default:
      return "a dtype without a name here";
  }
}

#endif /* NPU_KERNELS_DTYPE_H_ */
