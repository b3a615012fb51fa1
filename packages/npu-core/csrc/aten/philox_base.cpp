// The Philox kernels for any CPU.
#define NPU_ISA base
#include "philox_kernels.inc"
