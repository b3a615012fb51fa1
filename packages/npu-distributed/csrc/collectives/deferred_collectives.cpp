#include "collectives/deferred_collectives.h"

#include "transport/comm_error.h"

namespace npu::distributed {
DeferredCollectives::DeferredCollectives(const ConnectSettings& settings, KeyValueStore store, DeviceMemory& memory,
                                         LinkFactory make_link)
    : settings_(settings), store_(std::move(store)), memory_(memory), make_link_(std::move(make_link)) {
  settings_.meeting.check = [this, check = settings.meeting.check] {
    ThrowIfAborted();
    if (check) check();
  };
}

void DeferredCollectives::ThrowIfAborted() const {
  const std::lock_guard lock(mutex_);
  if (!abort_reason_.empty()) throw CommError(NPU_ERROR_STOPPED, abort_reason_);
}

Collectives& DeferredCollectives::Connected() {
  {
    const std::lock_guard lock(mutex_);
    if (connected_) return *connected_;
  }
  ThrowIfAborted();
  std::unique_ptr<Collectives> made = Connect(settings_, store_, memory_, make_link_);
  const std::lock_guard lock(mutex_);
  connected_ = std::move(made);
  if (!abort_reason_.empty()) connected_->Abort(abort_reason_.c_str());
  return *connected_;
}

uint64_t DeferredCollectives::identity() const {
  const std::lock_guard lock(mutex_);
  return connected_ ? connected_->identity() : 0;
}

uint64_t DeferredCollectives::call_number() const {
  const std::lock_guard lock(mutex_);
  return connected_ ? connected_->call_number() : 0;
}

void DeferredCollectives::AllReduce(ElementType type, ReduceKind kind, double factor, Region data) {
  Connected().AllReduce(type, kind, factor, data);
}

void DeferredCollectives::Broadcast(ElementType type, int root, Region data) {
  Connected().Broadcast(type, root, data);
}

void DeferredCollectives::AllGather(ElementType type, Region input, std::span<const Region> outputs) {
  Connected().AllGather(type, input, outputs);
}

void DeferredCollectives::Reduce(ElementType type, ReduceKind kind, double factor, int root, Region data) {
  Connected().Reduce(type, kind, factor, root, data);
}

void DeferredCollectives::ReduceScatter(ElementType type, ReduceKind kind, double factor,
                                        std::span<const Region> inputs, Region output) {
  Connected().ReduceScatter(type, kind, factor, inputs, output);
}

void DeferredCollectives::AllToAll(ElementType type, std::span<const Region> inputs, std::span<const Region> outputs) {
  Connected().AllToAll(type, inputs, outputs);
}

void DeferredCollectives::Scatter(ElementType type, int root, std::span<const Region> inputs, Region output) {
  Connected().Scatter(type, root, inputs, output);
}

void DeferredCollectives::Gather(ElementType type, int root, Region input, std::span<const Region> outputs) {
  Connected().Gather(type, root, input, outputs);
}

void DeferredCollectives::Barrier() { Connected().Barrier(); }

void DeferredCollectives::Agree(std::string_view operation) { Connected().Agree(operation); }

void DeferredCollectives::Exchange(std::span<const Transfer> transfers) { Connected().Exchange(transfers); }

void DeferredCollectives::Abort(const char* reason) noexcept {
  const std::lock_guard lock(mutex_);
  if (abort_reason_.empty()) abort_reason_ = reason;
  if (connected_) connected_->Abort(reason);
}

void DeferredCollectives::Leave() noexcept {
  const std::lock_guard lock(mutex_);
  if (connected_) connected_->Leave();
}

}  // namespace npu::distributed
