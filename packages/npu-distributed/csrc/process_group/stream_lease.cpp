#include "process_group/stream_lease.h"

#include <c10/util/Exception.h>

#include <map>
#include <mutex>

namespace npu::distributed {
namespace {

constexpr int kMostStreams = 32;  // of a pool

struct Uses {
  std::mutex mutex;
  std::map<npu_stream*, int> counts;
};

Uses& TheUses() {
  static Uses* uses = new Uses;  // outlives groups that are destroyed during exit
  return *uses;
}

}  // namespace

std::shared_ptr<npu_stream> LeaseStream(int device, int priority) {
  Uses& uses = TheUses();
  const std::lock_guard lock(uses.mutex);
  npu_stream* chosen = nullptr;
  for (int draw = 0; draw < kMostStreams; ++draw) {
    npu_stream* stream = Runtime().stream_from_pool(device, priority);
    TORCH_CHECK(stream != nullptr, "hccl: no communication stream: ", Runtime().last_error());
    if (chosen == nullptr || uses.counts[stream] < uses.counts[chosen]) chosen = stream;
    if (uses.counts[chosen] == 0) break;
  }
  ++uses.counts[chosen];
  return {chosen, [](npu_stream* stream) {
            Uses& all = TheUses();
            const std::lock_guard release(all.mutex);
            --all.counts[stream];
          }};
}

}  // namespace npu::distributed
