#include "memory_pool.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <vector>

#include "error.h"

namespace npu {

std::atomic<int> g_pool_scopes{0};

namespace {

struct Scope {
  int device;
  BlockPool* pool;
};

std::vector<Scope>& scopes() {
  thread_local std::vector<Scope> of_this_thread;
  return of_this_thread;
}

}  // namespace

c10::MempoolId_t new_memory_pool_id() {
  static std::atomic<c10::CaptureId_t> last{0};
  return {0, ++last};
}

BlockPool* chosen_pool(int device) noexcept {
  const auto& all = scopes();
  const auto found = std::find_if(all.rbegin(), all.rend(), [&](const Scope& scope) { return scope.device == device; });
  return found == all.rend() ? nullptr : found->pool;
}

void choose_pool(int device, BlockPool* pool) {
  scopes().push_back({device, pool});
  g_pool_scopes.fetch_add(1, std::memory_order_relaxed);
}

void leave_pool(int device, const BlockPool* pool) {
  auto& all = scopes();
  const auto found = std::find_if(all.rbegin(), all.rend(),
                                  [&](const Scope& scope) { return scope.device == device && scope.pool == pool; });
  TORCH_CHECK(found != all.rend(), "end_allocating_to_pool: the calling thread does not allocate to this pool",
              error_suffix(Submodule::PTA, ErrorCode::PARAM));
  all.erase(std::next(found).base());
  g_pool_scopes.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace npu
