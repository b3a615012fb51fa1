// Checks that the fused operators share.  Every error names the operator and the argument.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>
#include <string_view>

/// Throws c10::Error "op: argument name: ..." unless `condition` holds.
#define MC2_CHECK(condition, op, name, ...) TORCH_CHECK(condition, op, ": argument ", name, ": ", __VA_ARGS__)

namespace npu::distributed {

using OptionalTensor = std::optional<at::Tensor>;

inline bool Given(const OptionalTensor& tensor) { return tensor.has_value() && tensor->defined(); }
inline at::Tensor OrUndefined(const OptionalTensor& tensor) { return Given(tensor) ? *tensor : at::Tensor(); }

/// world_size is positive; RequireCommunicator compares it.
void CheckWorldSize(const char* op, const char* argument, int64_t world_size);
/// comm_mode is None, "ai_cpu" or "aiv"; it has no effect here.
void CheckCommMode(const char* op, const std::optional<std::string_view>& comm_mode);
/// comm_turn is 0.
void CheckCommTurn(const char* op, int64_t comm_turn);
/// reduce_op is "sum".
void CheckReduceOp(const char* op, std::string_view reduce_op);
/// Throws NotImplementedError for types of the newest chips (float8, packed float4).
void RefuseFloat8(const char* op, const char* argument, const at::Tensor& tensor);
/// `tensor` has the shape [length] or [1, length].
void CheckRow(const char* op, const char* argument, const at::Tensor& tensor, int64_t length);

}  // namespace npu::distributed
