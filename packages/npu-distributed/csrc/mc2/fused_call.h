// The frame of an operator that computes and communicates: to its caller work of the current stream, inside two
// streams.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "process_group/communicator.h"

namespace npu::distributed {

/// The communicator `name` on the current device.  Throws c10::Error that names `op` when the name is empty, longer
/// than 127 characters or unknown, or when `world_size` (if not negative) is not its size, or when the group or the
/// current stream carries the error of an earlier collective.
Communicator& RequireCommunicator(const char* op, const std::string& name, int64_t world_size = -1);

/// "Half[4, 8]"
std::string TypeAndShape(at::ScalarType type, at::IntArrayRef shape);

struct NamedTensor {
  const char* argument;
  at::Tensor tensor;  ///< may be undefined
};

/// Throws c10::Error that names `op` and the argument unless all tensors are on the device of `communicator`.
void RequireDevice(const char* op, std::initializer_list<NamedTensor> tensors, const Communicator& communicator);

/// One call of a fused operator.  Use from the calling thread only:
///
///   FusedCall call(communicator, "npu::op", "float16[4, 8]");
///   at::mm_out(tile, ...);                                   // compute: current stream
///   auto step = call.Communicate({tile}, body);              // communication stream, behind what the current one
///   holds call.WaitFor(step);                                      // the current stream waits for that step
///   call.Join();                                             // the current stream waits for all steps so far
///
/// Both directions order streams, never the host.  A failed collective fails the current stream where it waits.
class FusedCall {
 public:
  /// A piece of communication, as something to wait for.
  class Step {
   private:
    friend class FusedCall;
    EventPtr end_;
    std::shared_ptr<CallRecord> record_;
  };

  /// `label` is "npu::" and the operator's name, a static string.  Before anything else the ranks compare it and
  /// `agreed`, what has to be the same on all of them.
  FusedCall(Communicator& communicator, const char* label, const std::string& agreed);
  FusedCall(const FusedCall&) = delete;
  FusedCall& operator=(const FusedCall&) = delete;

  /// Queues `body` on the communication stream.  `tensors` are those whose memory it uses: their blocks are not reused
  /// before it has run.
  Step Communicate(std::vector<at::Tensor> tensors, Communicator::Body body);

  /// Makes the current stream wait for `step` and those before it.
  void WaitFor(const Step& step);

  /// Makes the current stream wait for everything communicated so far.
  void Join();

 private:
  Communicator& communicator_;
  const char* label_;
  std::string signature_;
  EventPtr ready_;
  EventPtr done_;
  std::shared_ptr<CallRecord> last_;
};

}  // namespace npu::distributed
