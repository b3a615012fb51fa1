// Which kernel tables the library uses, for library.py.
#include "npu/kernels/isa_control.h"
