// npu::_npu_distribute_barrier: a place in the stream where all ranks of a group meet.
#include <ATen/ATen.h>

#include "mc2/argument_checks.h"
#include "mc2/fused_call.h"
#include "mc2/operator_registration.h"

namespace npu::distributed {
namespace {

constexpr const char* kBarrier = "_npu_distribute_barrier";

at::Tensor Barrier(const at::Tensor& x_ref, c10::string_view group, int64_t world_size,
                   const std::optional<at::Tensor>& /*time_out*/, const std::optional<at::Tensor>& /*elastic_info*/) {
  CheckWorldSize(kBarrier, "world_size", world_size);
  Communicator& communicator = RequireCommunicator(kBarrier, std::string(group), world_size);
  RequireDevice(kBarrier, {{"x_ref", x_ref}}, communicator);
  FusedCall call(communicator, "npu::_npu_distribute_barrier", "");
  call.Communicate({}, [](Collectives& ranks) { ranks.Barrier(); });
  call.Join();
  return x_ref.clone(at::MemoryFormat::Contiguous);  // behind the barrier
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(npu, m) {
  DefineFusedOperator<&Barrier>(m,
                                "_npu_distribute_barrier(Tensor x_ref, str group, int world_size, *, "
                                "Tensor? time_out=None, Tensor? elastic_info=None) -> Tensor");
}

}  // namespace npu::distributed
