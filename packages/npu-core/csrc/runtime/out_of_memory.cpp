#include "out_of_memory.h"

#include <c10/core/CachingDeviceAllocator.h>

#include <algorithm>
#include <mutex>
#include <sstream>
#include <utility>
#include <vector>

namespace npu {
namespace {

using c10::CachingAllocator::format_size;

struct Observers {
  std::mutex mutex;
  std::vector<OutOfMemoryObserver> all;
};

Observers& observers() {
  static auto* instance = new Observers;  // outlives static destructors
  return *instance;
}

std::string blocks(const BlockTotals& totals) {
  std::ostringstream text;
  text << format_size(totals.bytes) << " in " << totals.count << (totals.count == 1 ? " block" : " blocks");
  if (totals.count > 1) text << ", the largest " << format_size(totals.largest);
  return text.str();
}

void describe_state(std::ostringstream& text, const OutOfMemoryFacts& facts) {
  text << "\nThe request of " << format_size(facts.requested) << " needs a block of " << format_size(facts.block)
       << " on stream " << facts.stream_id << ", and its pool would have to grow by " << format_size(facts.growth)
       << ".";
  if (facts.cached_here.count != 0) text << "\n- Cached for that stream: " << blocks(facts.cached_here) << ".";
  if (facts.cached_elsewhere.count != 0)
    text << "\n- Cached for other streams or sizes: " << blocks(facts.cached_elsewhere) << ".";
  if (facts.waiting.count != 0)
    text << "\n- Freed, but still used by other streams (record_stream): " << blocks(facts.waiting) << ".";
  if (facts.private_pools.count != 0)
    text << "\n- Held by private memory pools: " << format_size(facts.private_pools.bytes) << ", of which "
         << format_size(facts.private_allocated) << " are allocated.";
  if (facts.limit != AllocatorConfig::kUnlimited)
    text << "\n- This process may hold " << format_size(facts.limit) << ", a fraction of " << facts.fraction
         << " of the device.";
  const std::size_t used = facts.total - std::min(facts.free, facts.total);
  if (used > facts.reserved)
    text << "\n- Used on the device outside of this allocator: " << format_size(used - facts.reserved) << ".";
  if (!facts.driver_text.empty()) text << "\n- The driver: " << facts.driver_text << ".";
}

void describe_remedies(std::ostringstream& text, const OutOfMemoryFacts& facts) {
  text << "\nWhat can help:";
  if (facts.limited())
    text << "\n- torch.npu.set_per_process_memory_fraction(f) with f above " << facts.fraction
         << " (or per_process_memory_fraction in PYTORCH_NPU_ALLOC_CONF).";
  if (facts.fragmented() && !facts.expandable)
    text << "\n- Enough of the reserved memory is not allocated, but in pieces: "
            "PYTORCH_NPU_ALLOC_CONF=expandable_segments:True, or else max_split_size_mb:<n>, reduces fragmentation.";
  if (facts.rejected && facts.cached_here.bytes + facts.cached_elsewhere.bytes != 0)
    text << "\n- torch.npu.empty_cache(): throw_on_npumalloc_oom keeps the allocator from giving cached memory back "
            "by itself.";
  if (facts.waiting.count != 0)
    text << "\n- torch.npu.synchronize() before the allocation: memory other streams still use becomes free.";
  if (facts.private_pools.bytes > facts.private_allocated && !facts.in_private_pool)
    text << "\n- Dropping memory pools and graphs that are no longer needed: only they use the memory they hold.";
  if (facts.emulated)
    text << "\n- The device is emulated: NPU_HOST_MEMORY sets its capacity (now " << format_size(facts.total) << ").";
  text << "\n- Fewer or smaller tensors at a time; torch.npu.memory._record_memory_history() and _dump_snapshot() "
          "show who holds the memory.";
}

}  // namespace

std::string describe(const OutOfMemoryFacts& facts) {
  std::ostringstream text;
  text << "NPU out of memory. Tried to allocate " << format_size(std::max(facts.requested, facts.growth)) << " (NPU "
       << facts.device << "; " << format_size(facts.total) << " total capacity; " << format_size(facts.allocated)
       << " already allocated; " << format_size(facts.active) << " current active; " << format_size(facts.free)
       << " free; ";
  if (facts.limit != AllocatorConfig::kUnlimited) text << format_size(facts.limit) << " allowed; ";
  text << format_size(facts.reserved) << " reserved in total by PyTorch)";
  describe_state(text, facts);
  describe_remedies(text, facts);
  return text.str();
}

void attach_out_of_memory_observer(OutOfMemoryObserver observer) {
  std::lock_guard lock(observers().mutex);
  observers().all.push_back(std::move(observer));
}

void notify_out_of_memory(const OutOfMemoryFacts& facts) {
  std::vector<OutOfMemoryObserver> all;
  {
    std::lock_guard lock(observers().mutex);
    all = observers().all;
  }
  const std::size_t capacity = std::min(facts.limit, facts.total);
  for (const OutOfMemoryObserver& observer : all) observer(facts.device, facts.requested, capacity, facts.free);
}

}  // namespace npu
