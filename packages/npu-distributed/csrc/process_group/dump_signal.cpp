#include "process_group/dump_signal.h"

#include <algorithm>
#include <thread>
#include <utility>

namespace npu::distributed {
namespace {

constexpr const char* kRaised = "hccl/dump/raised";
constexpr const char* kWritten = "hccl/dump/written";
constexpr std::chrono::milliseconds kPoll{20};

}  // namespace

// A signal of an earlier group on the same store is not for this one.
DumpSignal::DumpSignal(const c10::intrusive_ptr<c10d::Store>& group_store)
    : store_(group_store, /*shared_by_job=*/true), seen_(store_.Add(kRaised, 0).value_or(0)) {}

void DumpSignal::Raise() noexcept {
  written_before_ = store_.Add(kWritten, 0).value_or(0);
  seen_ = store_.Add(kRaised, 1).value_or(seen_);
}

bool DumpSignal::Raised() noexcept {
  const int64_t now = store_.Add(kRaised, 0).value_or(seen_);
  return std::exchange(seen_, std::max(seen_, now)) < now;
}

void DumpSignal::Acknowledge() noexcept { store_.Add(kWritten, 1); }

void DumpSignal::AwaitDumps(int ranks, std::chrono::milliseconds limit) noexcept {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  while (std::chrono::steady_clock::now() < deadline) {
    const auto written = store_.Add(kWritten, 0);
    if (!written || *written >= written_before_ + ranks) return;
    std::this_thread::sleep_for(kPoll);
  }
}

}  // namespace npu::distributed
