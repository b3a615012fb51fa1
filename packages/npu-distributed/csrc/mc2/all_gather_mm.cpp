// npu::npu_all_gather_base_mm: the product of the gathered matrix of all ranks with an own one.
#include <ATen/ATen.h>

#include "mc2/argument_checks.h"
#include "mc2/fused_call.h"
#include "mc2/operator_registration.h"
#include "mc2/row_tiles.h"
#include "mc2/scaled_operands.h"
#include "process_group/tensor_checks.h"

namespace npu::distributed {
namespace {

constexpr const char* kOp = "npu_all_gather_base_mm";

/// The blocks of a matrix that stacks one block of equal size per rank.
std::vector<Region> BlocksOf(const at::Tensor& stacked, int64_t size) {
  std::vector<Region> blocks;
  const int64_t rows = stacked.size(0) / size;
  for (int64_t rank = 0; rank < size; ++rank) blocks.push_back(RegionOf(stacked.narrow(0, rank * rows, rows)));
  return blocks;
}

/// The gathering of one block of every rank: one step for all of them, or one per rank when a block is large.
class Gathering {
 public:
  /// `stacked` [size * rows, ...] gets the contiguous `own` [rows, ...] of every rank.
  Gathering(FusedCall& call, const Communicator& communicator, const at::Tensor& own, const at::Tensor& stacked)
      : call_(call) {
    const int size = communicator.size();
    const ElementType type = ElementTypeOf(own);
    std::vector<Region> blocks = BlocksOf(stacked, size);
    if (static_cast<int64_t>(own.nbytes()) < kTileBytes || size == 1) {
      steps_.push_back(call.Communicate({own, stacked},
                                        [type, input = RegionOf(own), blocks = std::move(blocks)](Collectives& ranks) {
                                          ranks.AllGather(type, input, blocks);
                                        }));
      return;
    }
    stacked.narrow(0, communicator.rank() * own.size(0), own.size(0)).copy_(own);
    for (int root = 0; root < size; ++root) {
      const Region block = blocks[static_cast<size_t>(root)];
      steps_.push_back(
          call.Communicate({stacked}, [type, root, block](Collectives& ranks) { ranks.Broadcast(type, root, block); }));
    }
  }

  /// Whether the blocks come one by one.
  bool is_split() const { return steps_.size() > 1; }
  /// Makes the current stream wait for the block of `rank`, when they come one by one.
  void WaitFor(int rank) const { call_.WaitFor(steps_[static_cast<size_t>(rank)]); }
  void WaitForAll() const { call_.WaitFor(steps_.back()); }

 private:
  FusedCall& call_;
  std::vector<FusedCall::Step> steps_;
};

std::tuple<at::Tensor, at::Tensor> AllGatherMm(const at::Tensor& self, const at::Tensor& x2, c10::string_view hcom,
                                               int64_t world_size, const OptionalTensor& bias,
                                               const OptionalTensor& x1_scale, const OptionalTensor& x2_scale,
                                               int64_t gather_index, bool gather_output, int64_t comm_turn,
                                               std::optional<at::ScalarType> output_dtype,
                                               std::optional<c10::string_view> comm_mode) {
  const ScaledOperands operands{self, x2, bias, x1_scale, x2_scale, output_dtype};
  operands.Check(kOp);
  MC2_CHECK(gather_index == 0 || gather_index == 1, kOp, "gather_index", "expected 0 or 1, but got ", gather_index);
  CheckCommTurn(kOp, comm_turn);
  CheckCommMode(kOp, comm_mode);
  CheckWorldSize(kOp, "world_size", world_size);
  MC2_CHECK(gather_index == 1 || x2.size(0) == self.size(1), kOp, "x2", "expected ", self.size(1),
            " rows, as many as self has columns, but got ", x2.size(0));
  Communicator& communicator = RequireCommunicator(kOp, std::string(hcom), world_size);
  RequireDevice(kOp,
                {{"self", self},
                 {"x2", x2},
                 {"bias", OrUndefined(bias)},
                 {"x1_scale", OrUndefined(x1_scale)},
                 {"x2_scale", OrUndefined(x2_scale)}},
                communicator);
  const int64_t size = communicator.size();
  const int rank = communicator.rank();
  const at::Tensor own = (gather_index == 0 ? self : x2).contiguous();
  MC2_CHECK(gather_index == 0 || own.size(0) * size == self.size(1), kOp, "self", "expected ", own.size(0) * size,
            " columns, the rows of x2 on all ranks, but got ", self.size(1));

  const int64_t rows = own.size(0);
  const at::Tensor stacked = at::empty({size * rows, own.size(1)}, own.options());
  const at::ScalarType type = operands.is_scaled() ? at::kFloat : self.scalar_type();
  at::Tensor result =
      at::empty({gather_index == 0 ? size * rows : self.size(0), x2.size(1)}, self.options().dtype(type));
  const at::Tensor row_scale = operands.RowScale();
  FusedCall call(communicator, "npu::npu_all_gather_base_mm",
                 c10::str("gather_index=", gather_index, ": ", TypeAndShape(own.scalar_type(), own.sizes()),
                          " per rank", row_scale.defined() && gather_index == 0 ? ", x1_scale" : ""));
  if (gather_index == 1) {
    Gathering(call, communicator, own, stacked).WaitForAll();
    operands.Product(type, stacked).Into(result, self, row_scale);
  } else {
    const DenseProduct product = operands.Product(type, x2);
    at::Tensor row_scales;
    if (row_scale.defined()) {
      row_scales = at::empty({size * rows}, row_scale.options());
      call.Communicate({row_scale, row_scales},
                       [input = RegionOf(row_scale), blocks = BlocksOf(row_scales, size)](Collectives& ranks) {
                         ranks.AllGather(ElementType::kFloat32, input, blocks);
                       });
    }
    const Gathering gathering(call, communicator, own, stacked);
    if (!gathering.is_split()) {
      gathering.WaitForAll();
      product.Into(result, stacked, row_scales);
    } else {
      product.Into(result.narrow(0, rank * rows, rows), own, row_scale);  // while the others' rows are on their way
      for (int peer = 0; peer < size; ++peer) {
        gathering.WaitFor(peer);
        if (peer == rank) continue;
        const auto part = [&](const at::Tensor& of_all) {
          return of_all.defined() ? of_all.narrow(0, peer * rows, rows) : of_all;
        };
        product.Into(part(result), part(stacked), part(row_scales));
      }
    }
  }
  return {result.to(operands.ResultType()), gather_output ? stacked : at::empty({0}, self.options())};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(npu, m) {
  DefineFusedOperator<&AllGatherMm>(
      m,
      "npu_all_gather_base_mm(Tensor self, Tensor x2, str hcom, int world_size, *, Tensor? bias=None, "
      "Tensor? x1_scale=None, Tensor? x2_scale=None, int gather_index=0, bool gather_output=True, int comm_turn=0, "
      "ScalarType? output_dtype=None, str? comm_mode=None) -> (Tensor, Tensor)");
}

}  // namespace npu::distributed
