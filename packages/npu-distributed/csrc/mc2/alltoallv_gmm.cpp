// npu::npu_alltoallv_gmm and npu::npu_gmm_alltoallv: the products of experts with rows that travel to them, or back.
#include <ATen/ATen.h>

#include <algorithm>

#include "mc2/argument_checks.h"
#include "mc2/expert_blocks.h"
#include "mc2/fused_call.h"
#include "mc2/grouped_product.h"
#include "mc2/operator_registration.h"
#include "process_group/tensor_checks.h"
#include "transport/comm_error.h"

namespace npu::distributed {
namespace {

constexpr const char* kForward = "npu_alltoallv_gmm";
constexpr const char* kBackward = "npu_gmm_alltoallv";

/// The arguments that both operators have.
struct Arguments {
  const char* op;
  const at::Tensor& gmm_x;
  const at::Tensor& gmm_weight;
  int64_t ep_world_size;
  at::IntArrayRef send_counts, recv_counts;
  at::Tensor mm_x, mm_weight;
  bool trans_gmm_weight, trans_mm_weight;

  int64_t experts() const { return gmm_weight.size(0); }
  ExpertCounts Sent() const { return {send_counts.vec(), experts()}; }
  ExpertCounts Received() const { return {recv_counts.vec(), experts()}; }
  at::Tensor MmWeight() const { return trans_mm_weight ? mm_weight.t() : mm_weight; }

  /// What is the same on all ranks, when rows of `columns` numbers travel.
  std::string Agreed(int64_t columns) const {
    return c10::str("rows of ", columns, " x ", gmm_x.scalar_type(), ", experts per rank: ", experts());
  }
  void Check() const;
  /// The local product, or an undefined tensor.
  at::Tensor LocalProduct() const { return mm_x.defined() ? at::mm(mm_x, MmWeight()) : at::Tensor(); }
};

void CheckCounts(const char* op, const char* argument, at::IntArrayRef counts, int64_t ranks, int64_t experts) {
  MC2_CHECK(static_cast<int64_t>(counts.size()) == ranks * experts, op, argument, "expected ", ranks * experts,
            " numbers, one for each of ", experts, " experts on each of ", ranks, " ranks, but got ", counts.size());
  for (size_t i = 0; i < counts.size(); ++i) {
    MC2_CHECK(counts[i] >= 0, op, argument, "expected no negative number, but element ", i, " is ", counts[i]);
  }
}

void Arguments::Check() const {
  RefuseFloat8(op, "gmm_x", gmm_x);
  const at::ScalarType type = gmm_x.scalar_type();
  MC2_CHECK(type == at::kHalf || type == at::kBFloat16, op, "gmm_x", "expected float16 or bfloat16, but got ", type);
  MC2_CHECK(gmm_x.dim() == 2, op, "gmm_x", "expected 2 dims [rows, H1], but got the shape ", gmm_x.sizes());
  const char* weight_shape = trans_gmm_weight ? "[experts, N1, H1]" : "[experts, H1, N1]";
  MC2_CHECK(gmm_weight.dim() == 3 && experts() > 0, op, "gmm_weight", "expected 3 dims ", weight_shape,
            ", but got the shape ", gmm_weight.sizes());
  MC2_CHECK(gmm_weight.scalar_type() == type, op, "gmm_weight", "expected ", type, " like gmm_x, but got ",
            gmm_weight.scalar_type());
  MC2_CHECK(gmm_weight.size(trans_gmm_weight ? 2 : 1) == gmm_x.size(1), op, "gmm_weight", "expected the shape ",
            weight_shape, " with H1 = ", gmm_x.size(1), ", the columns of gmm_x, but got ", gmm_weight.sizes());
  CheckWorldSize(op, "ep_world_size", ep_world_size);
  CheckCounts(op, "send_counts", send_counts, ep_world_size, experts());
  CheckCounts(op, "recv_counts", recv_counts, ep_world_size, experts());
  MC2_CHECK(Sent().Total() == gmm_x.size(0), op, "send_counts", "expected a sum of ", gmm_x.size(0),
            ", the rows of gmm_x, but got ", Sent().Total());
  MC2_CHECK(mm_x.defined() == mm_weight.defined(), op, mm_x.defined() ? "mm_weight" : "mm_x",
            "mm_x and mm_weight belong together; pass both or none");
  if (!mm_x.defined()) return;
  MC2_CHECK(mm_x.dim() == 2, op, "mm_x", "expected 2 dims [rows, H2], but got the shape ", mm_x.sizes());
  MC2_CHECK(mm_x.scalar_type() == type, op, "mm_x", "expected ", type, " like gmm_x, but got ", mm_x.scalar_type());
  MC2_CHECK(mm_weight.scalar_type() == type, op, "mm_weight", "expected ", type, " like gmm_x, but got ",
            mm_weight.scalar_type());
  MC2_CHECK(mm_weight.dim() == 2 && mm_weight.size(trans_mm_weight ? 1 : 0) == mm_x.size(1), op, "mm_weight",
            "expected the shape ", trans_mm_weight ? "[N2, H2]" : "[H2, N2]", " with H2 = ", mm_x.size(1),
            ", the columns of mm_x, but got ", mm_weight.sizes());
}

Communicator& Find(const Arguments& arguments, c10::string_view hcom, const OptionalTensor& send_counts_tensor,
                   const OptionalTensor& recv_counts_tensor, const std::optional<c10::string_view>& comm_mode) {
  const char* op = arguments.op;
  MC2_CHECK(!Given(send_counts_tensor), op, "send_counts_tensor", "it is reserved; pass None and the list send_counts");
  MC2_CHECK(!Given(recv_counts_tensor), op, "recv_counts_tensor", "it is reserved; pass None and the list recv_counts");
  CheckCommMode(op, comm_mode);
  Communicator& communicator = RequireCommunicator(op, std::string(hcom), arguments.ep_world_size);
  RequireDevice(op,
                {{"gmm_x", arguments.gmm_x},
                 {"gmm_weight", arguments.gmm_weight},
                 {"mm_x", arguments.mm_x},
                 {"mm_weight", arguments.mm_weight}},
                communicator);
  return communicator;
}

/// The exchange of the blocks of one expert after the other, each a step of its own.
class ExpertExchange {
 public:
  ExpertExchange(const Arguments& arguments, FusedCall& call, const Communicator& communicator)
      : call_(call), type_(ElementTypeOf(arguments.gmm_x)) {
    CompareCounts(arguments, communicator);
  }

  /// inputs[d] of this rank goes to rank d, outputs[s] comes from rank s; `tensors` hold them.
  FusedCall::Step Exchange(const std::vector<at::Tensor>& tensors, std::vector<Region> inputs,
                           std::vector<Region> outputs) {
    return call_.Communicate(tensors, [type = type_, inputs = std::move(inputs), outputs = std::move(outputs)](
                                          Collectives& ranks) { ranks.AllToAll(type, inputs, outputs); });
  }

 private:
  /// Tells every rank the counts of all: if two do not fit together, all fail with the same text.
  void CompareCounts(const Arguments& arguments, const Communicator& communicator) {
    const int64_t length = static_cast<int64_t>(arguments.send_counts.size());
    const int64_t size = communicator.size();
    const int64_t experts = arguments.experts();
    const at::Tensor all = at::empty({size, 2 * length}, arguments.gmm_x.options().dtype(at::kLong));
    const at::Tensor own = at::empty({2 * length}, all.options());
    std::vector<Region> outputs;
    for (int64_t rank = 0; rank < size; ++rank) outputs.push_back(RegionOf(all.select(0, rank)));
    call_.Communicate(
        {own, all}, [sent = arguments.send_counts.vec(), received = arguments.recv_counts.vec(), input = RegionOf(own),
                     outputs = std::move(outputs), size, experts](Collectives& ranks) {
          auto* numbers = static_cast<int64_t*>(input.address);
          std::copy(received.begin(), received.end(), std::copy(sent.begin(), sent.end(), numbers));
          ranks.AllGather(ElementType::kInt64, input, outputs);
          const size_t length = sent.size();
          for (int64_t from = 0; from < size; ++from) {
            for (int64_t to = 0; to < size; ++to) {
              const auto* send = static_cast<const int64_t*>(outputs[static_cast<size_t>(from)].address);
              const auto* receive = static_cast<const int64_t*>(outputs[static_cast<size_t>(to)].address) + length;
              for (int64_t expert = 0; expert < experts; ++expert) {
                const int64_t given = send[to * experts + expert];
                const int64_t expected = receive[from * experts + expert];
                if (given == expected) continue;
                throw CommError(NPU_ERROR_TASK_FAILED,
                                "EI0005: hccl: call number " + std::to_string(ranks.call_number()) + ": rank " +
                                    std::to_string(from) + " sends " + std::to_string(given) + " rows to rank " +
                                    std::to_string(to) + " (send_counts[" + std::to_string(to * experts + expert) +
                                    "]), which expects " + std::to_string(expected) + " (recv_counts[" +
                                    std::to_string(from * experts + expert) + "])");
              }
            }
          }
        });
  }

  FusedCall& call_;
  ElementType type_;
};

std::tuple<at::Tensor, at::Tensor, at::Tensor> AllToAllvGmm(
    const at::Tensor& gmm_x, const at::Tensor& gmm_weight, c10::string_view hcom, int64_t ep_world_size,
    at::IntArrayRef send_counts, at::IntArrayRef recv_counts, const OptionalTensor& send_counts_tensor,
    const OptionalTensor& recv_counts_tensor, const OptionalTensor& mm_x, const OptionalTensor& mm_weight,
    bool trans_gmm_weight, bool trans_mm_weight, bool permute_out_flag, std::optional<c10::string_view> comm_mode) {
  const Arguments arguments{kForward,         gmm_x,          gmm_weight,        ep_world_size,
                            send_counts,      recv_counts,    OrUndefined(mm_x), OrUndefined(mm_weight),
                            trans_gmm_weight, trans_mm_weight};
  arguments.Check();
  Communicator& communicator = Find(arguments, hcom, send_counts_tensor, recv_counts_tensor, comm_mode);
  const at::Tensor rows = gmm_x.contiguous();
  const GroupedProduct product(gmm_weight, trans_gmm_weight);
  const ExpertBlocks leaving = ExpertBlocks::RankMajor(arguments.Sent());
  const ExpertBlocks arriving = ExpertBlocks::ExpertMajor(arguments.Received());
  const int64_t count = arguments.Received().Total();
  const at::Tensor permuted = at::empty({count, product.rows()}, rows.options());
  const at::Tensor result = at::empty({count, product.columns()}, rows.options());

  FusedCall call(communicator, "npu::npu_alltoallv_gmm", arguments.Agreed(product.rows()));
  ExpertExchange exchange(arguments, call, communicator);
  std::vector<FusedCall::Step> steps;
  for (int64_t expert = 0; expert < product.groups(); ++expert) {
    steps.push_back(
        exchange.Exchange({rows, permuted}, leaving.RegionsOf(expert, rows), arriving.RegionsOf(expert, permuted)));
  }
  const at::Tensor local = arguments.LocalProduct();  // while the first rows are on their way
  for (int64_t expert = 0; expert < product.groups(); ++expert) {
    call.WaitFor(steps[static_cast<size_t>(expert)]);
    product.Into(arriving.RowsOf(expert, result), arriving.RowsOf(expert, permuted), expert);
  }
  return {result, local, permute_out_flag ? permuted : at::Tensor()};
}

std::tuple<at::Tensor, at::Tensor> GmmAllToAllv(const at::Tensor& gmm_x, const at::Tensor& gmm_weight,
                                                c10::string_view hcom, int64_t ep_world_size,
                                                at::IntArrayRef send_counts, at::IntArrayRef recv_counts,
                                                const OptionalTensor& send_counts_tensor,
                                                const OptionalTensor& recv_counts_tensor, const OptionalTensor& mm_x,
                                                const OptionalTensor& mm_weight, bool trans_gmm_weight,
                                                bool trans_mm_weight, std::optional<c10::string_view> comm_mode) {
  const Arguments arguments{kBackward,        gmm_x,          gmm_weight,        ep_world_size,
                            send_counts,      recv_counts,    OrUndefined(mm_x), OrUndefined(mm_weight),
                            trans_gmm_weight, trans_mm_weight};
  arguments.Check();
  Communicator& communicator = Find(arguments, hcom, send_counts_tensor, recv_counts_tensor, comm_mode);
  const GroupedProduct product(gmm_weight, trans_gmm_weight);
  const ExpertBlocks leaving = ExpertBlocks::ExpertMajor(arguments.Sent());
  const ExpertBlocks arriving = ExpertBlocks::RankMajor(arguments.Received());
  const at::Tensor products = at::empty({gmm_x.size(0), product.columns()}, gmm_x.options());
  const at::Tensor result = at::empty({arguments.Received().Total(), product.columns()}, gmm_x.options());

  FusedCall call(communicator, "npu::npu_gmm_alltoallv", arguments.Agreed(product.columns()));
  ExpertExchange exchange(arguments, call, communicator);
  for (int64_t expert = 0; expert < product.groups(); ++expert) {
    product.Into(leaving.RowsOf(expert, products), leaving.RowsOf(expert, gmm_x), expert);
    exchange.Exchange({products, result}, leaving.RegionsOf(expert, products), arriving.RegionsOf(expert, result));
  }
  const at::Tensor local = arguments.LocalProduct();  // while the last rows are on their way
  call.Join();
  return {result, local};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(npu, m) {
  DefineFusedOperator<&AllToAllvGmm>(
      m,
      "npu_alltoallv_gmm(Tensor gmm_x, Tensor gmm_weight, str hcom, int ep_world_size, int[] send_counts, "
      "int[] recv_counts, *, Tensor? send_counts_tensor=None, Tensor? recv_counts_tensor=None, Tensor? mm_x=None, "
      "Tensor? mm_weight=None, bool trans_gmm_weight=False, bool trans_mm_weight=False, bool permute_out_flag=False, "
      "str? comm_mode=None) -> (Tensor, Tensor, Tensor)");
  DefineFusedOperator<&GmmAllToAllv>(
      m,
      "npu_gmm_alltoallv(Tensor gmm_x, Tensor gmm_weight, str hcom, int ep_world_size, int[] send_counts, "
      "int[] recv_counts, *, Tensor? send_counts_tensor=None, Tensor? recv_counts_tensor=None, Tensor? mm_x=None, "
      "Tensor? mm_weight=None, bool trans_gmm_weight=False, bool trans_mm_weight=False, str? comm_mode=None) "
      "-> (Tensor, Tensor)");
}

}  // namespace npu::distributed
