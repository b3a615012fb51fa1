// The Philox kernels for CPUs with AVX-512; CMakeLists.txt has the flags.
#if defined(__x86_64__)
#define NPU_ISA avx512
#include "philox_kernels.inc"
#endif
