#pragma once
// Boxed arguments as flat bytes: what task_codec.h does for typed kernels, for operators called through their schema.
#include <ATen/core/stack.h>

#include "task_codec.h"

namespace npu::aten {

// Whether encode_value() can carry the value: tensors, numbers, strings, lists of them, None, and npu or CPU devices.
bool can_encode(const c10::IValue& value);

void encode_value(TaskWriter& writer, const c10::IValue& value);
// In place of a Generator: the engine makes a CPU generator from the seed.
void encode_generator(TaskWriter& writer, std::uint64_t seed);

// Tensors come back as CPU aliases, devices as the CPU.
c10::IValue decode_value(TaskReader& reader);

}  // namespace npu::aten
