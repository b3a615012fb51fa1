#include "mc2/fused_call.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include "process_group/communicator_registry.h"
#include "process_group/failed_streams.h"
#include "process_group/work.h"

namespace npu::distributed {

Communicator& RequireCommunicator(const char* op, const std::string& name, int64_t world_size) {
  constexpr size_t kLongestName = 127;
  TORCH_CHECK(!name.empty() && name.size() <= kLongestName, op, ": the name of the communicator should have 1 to ",
              kLongestName, " characters, but has ", name.size(),
              "; pass what group._get_backend(torch.device(\"npu\")).get_hccl_comm_name(rank) returns");
  int32_t device = 0;
  CheckRuntime(Runtime().current_device(&device), "reading the current device");
  Communicator* communicator = FindCommunicator(name, device);
  TORCH_CHECK(communicator != nullptr, op, ": there is no communicator \"", name, "\" on npu:", device,
              "; pass what group._get_backend(torch.device(\"npu\")).get_hccl_comm_name(rank) returns");
  TORCH_CHECK(world_size < 0 || world_size == communicator->size(), op, ": world size ", world_size,
              " is not the size of communicator \"", name, "\", which has ", communicator->size(), " ranks");
  const std::string failure = communicator->failure();
  if (!failure.empty()) {
    C10_THROW_ERROR(DistBackendError,
                    std::string(op) +
                        ": an earlier collective of this group failed, so the group cannot go on: " + failure +
                        ". Destroy it and initialise again, or call "
                        "torch_npu.distributed.reinit_process_group()");
  }
  RequireHealthyStream(Runtime().current_stream(device));
  return *communicator;
}

void RequireDevice(const char* op, std::initializer_list<NamedTensor> tensors, const Communicator& communicator) {
  for (const auto& [argument, tensor] : tensors) {
    TORCH_CHECK(!tensor.defined() || (tensor.device().type() == c10::DeviceType::PrivateUse1 &&
                                      tensor.device().index() == communicator.device()),
                op, ": argument ", argument, ": expected a tensor on npu:", communicator.device(),
                ", where the communicator is, but got one on ", tensor.device());
  }
}

std::string TypeAndShape(at::ScalarType type, at::IntArrayRef shape) { return c10::str(type, shape); }

FusedCall::FusedCall(Communicator& communicator, const char* label, const std::string& agreed)
    : communicator_(communicator),
      label_(label),
      signature_(label + (agreed.empty() ? "" : "(" + agreed + ")")),
      ready_(MakeEvent()),
      done_(MakeEvent()) {}

FusedCall::Step FusedCall::Communicate(std::vector<at::Tensor> tensors, Communicator::Body body) {
  if (!last_ && communicator_.size() > 1) {
    body = [signature = signature_, body = std::move(body)](Collectives& ranks) {
      ranks.Agree(signature);
      body(ranks);
    };
  }
  const npu_runtime_api& runtime = Runtime();
  npu_stream* stream = communicator_.stream();
  CheckRuntime(runtime.event_record(ready_.get(), runtime.current_stream(communicator_.device())), label_);
  CheckRuntime(runtime.event_wait(ready_.get(), stream), label_);
  for (const at::Tensor& tensor : tensors) {
    const void* block = tensor.defined() ? tensor.storage().data() : nullptr;
    if (block != nullptr) CheckRuntime(runtime.memory_record_stream(block, stream), label_);
  }
  Step step;
  step.end_ = MakeEvent();
  step.record_ = last_ = std::make_shared<CallRecord>();
  communicator_.LaunchFused(label_, last_, std::move(body));
  CheckRuntime(runtime.event_record(step.end_.get(), stream), label_);
  return step;
}

void FusedCall::WaitFor(const Step& step) {
  WaitOnCurrentStream(communicator_.device(), step.end_.get(), step.record_);
}

void FusedCall::Join() {
  if (!last_) return;
  CheckRuntime(Runtime().event_record(done_.get(), communicator_.stream()), "joining a fused operator");
  WaitOnCurrentStream(communicator_.device(), done_.get(), last_);
}

}  // namespace npu::distributed
