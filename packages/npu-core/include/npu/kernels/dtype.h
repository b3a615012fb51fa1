/* npu/kernels/dtype.h: element types as kernels and payloads name them.
 *
 * The numbers are torch's ScalarType numbers, which its stable ABI fixes, so that no conversion table is needed.
 * Plain C, because kernel files may include nothing of C++ (see lanes.h).
 */
#ifndef NPU_KERNELS_DTYPE_H_
#define NPU_KERNELS_DTYPE_H_

#include <stdint.h>

typedef int32_t npu_dtype;

enum { NPU_FLOAT16 = 5, NPU_FLOAT32 = 6, NPU_FLOAT64 = 7, NPU_BFLOAT16 = 15 };

/* Bytes of one element, or 0 for a type this header does not know. */
static inline int64_t npu_dtype_size(npu_dtype dtype) {
  switch (dtype) {
    case NPU_FLOAT16:
    case NPU_BFLOAT16:
      return 2;
    case NPU_FLOAT32:
      return 4;
    case NPU_FLOAT64:
      return 8;
    default:
      return 0;
  }
}

/* The name Python users know ("torch." left out). */
static inline const char* npu_dtype_name(npu_dtype dtype) {
  switch (dtype) {
    case 0:
      return "uint8";
    case 1:
      return "int8";
    case 2:
      return "int16";
    case 3:
      return "int32";
    case 4:
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
    case 11:
      return "bool";
    case NPU_BFLOAT16:
      return "bfloat16";
    default:
      return "a dtype without a name here";
  }
}

#endif /* NPU_KERNELS_DTYPE_H_ */
