#pragma once
#include "operator_plan.h"

namespace npu::aten {

using ShapeFunction = CallShape (*)(c10::ArrayRef<c10::IValue> arguments);

// Shapes of the results of operators that torch gives no meta kernel, or one that does not describe the CPU's; nullptr
// for all others.
ShapeFunction own_shape_function(const c10::OperatorName& name);

// Operators that return nothing and write into tensors whose shapes stay: nothing has to be known beforehand.
bool keeps_shapes(const c10::OperatorName& name);

}  // namespace npu::aten
