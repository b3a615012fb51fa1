// The Philox kernels for CPUs with AVX2; CMakeLists.txt has the flags.
#if defined(__x86_64__)
#define NPU_ISA avx2
#include "philox_kernels.inc"
#endif
