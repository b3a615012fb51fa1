// npu::npu_mm_reduce_scatter_base: sum over ranks of products, of which every rank gets its rows.
#include <ATen/ATen.h>

#include "mc2/argument_checks.h"
#include "mc2/fused_call.h"
#include "mc2/operator_registration.h"
#include "mc2/row_tiles.h"
#include "mc2/scaled_operands.h"
#include "process_group/tensor_checks.h"

namespace npu::distributed {
namespace {

constexpr const char* kOp = "npu_mm_reduce_scatter_base";

at::Tensor MmReduceScatter(const at::Tensor& self, const at::Tensor& x2, c10::string_view hcom, int64_t world_size,
                           c10::string_view reduce_op, const OptionalTensor& bias, const OptionalTensor& x1_scale,
                           const OptionalTensor& x2_scale, int64_t comm_turn,
                           std::optional<at::ScalarType> output_dtype, std::optional<c10::string_view> comm_mode) {
  const ScaledOperands operands{self, x2, bias, x1_scale, x2_scale, output_dtype};
  operands.Check(kOp);
  const int64_t m = self.size(0), k = self.size(1), n = x2.size(1);
  MC2_CHECK(x2.size(0) == k, kOp, "x2", "expected ", k, " rows, as many as self has columns, but got ", x2.size(0));
  CheckReduceOp(kOp, reduce_op);
  CheckCommTurn(kOp, comm_turn);
  CheckCommMode(kOp, comm_mode);
  CheckWorldSize(kOp, "world_size", world_size);
  Communicator& communicator = RequireCommunicator(kOp, std::string(hcom), world_size);
  RequireDevice(kOp,
                {{"self", self},
                 {"x2", x2},
                 {"bias", OrUndefined(bias)},
                 {"x1_scale", OrUndefined(x1_scale)},
                 {"x2_scale", OrUndefined(x2_scale)}},
                communicator);
  const int64_t size = communicator.size();
  MC2_CHECK(m % size == 0, kOp, "self", "expected a number of rows divisible by the ", size, " ranks, but got ", m);

  const DenseProduct product = operands.Product(at::kFloat, x2);
  const at::Tensor row_scale = operands.RowScale();
  const int64_t share = m / size;
  at::Tensor result = at::empty({share, n}, self.options().dtype(product.result_type()));
  FusedCall call(communicator, "npu::npu_mm_reduce_scatter_base",
                 c10::str(TypeAndShape(operands.ResultType(), result.sizes()), ", summed as ", result.scalar_type()));
  // A tile is the same rows of every rank's share, one below the other.
  const std::vector<RowTile> tiles = RowTiles(share, size * n * static_cast<int64_t>(result.element_size()));
  const auto rows_of = [&](const at::Tensor& matrix, const RowTile& tile) {
    if (!matrix.defined() || tiles.size() == 1) return matrix;
    return matrix.unflatten(0, {size, share}).narrow(1, tile.begin, tile.rows).flatten(0, 1);
  };
  for (const RowTile& tile : tiles) {
    at::Tensor partial = at::empty({size * tile.rows, n}, result.options());
    product.Into(partial, rows_of(self, tile), rows_of(row_scale, tile));
    std::vector<Region> inputs;
    for (int64_t rank = 0; rank < size; ++rank)
      inputs.push_back(RegionOf(partial.narrow(0, rank * tile.rows, tile.rows)));
    call.Communicate({partial, result},
                     [type = ElementTypeOf(result), inputs = std::move(inputs),
                      output = RegionOf(result.narrow(0, tile.begin, tile.rows))](Collectives& ranks) {
                       ranks.ReduceScatter(type, ReduceKind::kSum, 1.0, inputs, output);
                     });
  }
  call.Join();
  return result.to(operands.ResultType());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(npu, m) {
  DefineFusedOperator<&MmReduceScatter>(
      m,
      "npu_mm_reduce_scatter_base(Tensor self, Tensor x2, str hcom, int world_size, *, str reduce_op='sum', "
      "Tensor? bias=None, Tensor? x1_scale=None, Tensor? x2_scale=None, int comm_turn=0, ScalarType? "
      "output_dtype=None, "
      "str? comm_mode=None) -> Tensor");
}

}  // namespace npu::distributed
