#include "mc2/argument_checks.h"

#include <string>

namespace npu::distributed {

void CheckWorldSize(const char* op, const char* argument, int64_t world_size) {
  MC2_CHECK(world_size > 0, op, argument, "expected a positive number, but got ", world_size);
}

void CheckCommMode(const char* op, const std::optional<std::string_view>& comm_mode) {
  if (!comm_mode) return;
  MC2_CHECK(*comm_mode == "ai_cpu" || *comm_mode == "aiv", op, "comm_mode",
            "expected None, \"ai_cpu\" or \"aiv\", but got \"", std::string(*comm_mode), "\"");
}

void CheckCommTurn(const char* op, int64_t comm_turn) {
  MC2_CHECK(comm_turn == 0, op, "comm_turn", "expected 0, but got ", comm_turn);
}

void CheckReduceOp(const char* op, std::string_view reduce_op) {
  MC2_CHECK(reduce_op == "sum", op, "reduce_op", "expected \"sum\", but got \"", std::string(reduce_op), "\"");
}

void RefuseFloat8(const char* op, const char* argument, const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat8_e4m3fn:
    case at::kFloat8_e5m2:
    case at::kFloat8_e8m0fnu:
    case at::kFloat4_e2m1fn_x2:
      C10_THROW_ERROR(NotImplementedError, std::string(op) + ": argument " + argument +
                                               ": float8 and float4 are not supported by this version; use float16, "
                                               "bfloat16 or int8 tensors");
    default:
      return;
  }
}

void CheckRow(const char* op, const char* argument, const at::Tensor& tensor, int64_t length) {
  const bool fits = (tensor.dim() == 1 && tensor.size(0) == length) ||
                    (tensor.dim() == 2 && tensor.size(0) == 1 && tensor.size(1) == length);
  MC2_CHECK(fits, op, argument, "expected the shape [", length, "] or [1, ", length, "], but got ", tensor.sizes());
}

}  // namespace npu::distributed
