#include "transport/rendezvous.h"

#include <random>
#include <thread>

#include "transport/comm_error.h"

namespace npu::distributed {
namespace {

using Clock = std::chrono::steady_clock;

std::string RankKey(int rank) { return "rank/" + std::to_string(rank); }

std::chrono::milliseconds Remaining(Clock::time_point deadline) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
  return std::max(left, std::chrono::milliseconds(1));
}

/// What a rank leaves under its key once everybody has read it: a later group of the same name (init after destroy, on
/// a store that lives as long as the job) must not meet the identity of this one.
constexpr const char* kUsed = "used";
constexpr std::chrono::milliseconds kUsedPoll{2};

std::string GetFresh(KeyValueStore& store, const std::string& key, Clock::time_point deadline) {
  for (;;) {
    std::string text = store.get(key, Remaining(deadline));
    if (text != kUsed) return text;
    if (Clock::now() > deadline) throw std::runtime_error("only the key of an earlier group is there");
    std::this_thread::sleep_for(kUsedPoll);
  }
}

[[noreturn]] void ThrowConnectTimeout(const std::string& missing, std::chrono::milliseconds limit,
                                      const std::string& reason) {
  throw CommError(NPU_ERROR_TIMEOUT,
                  "EI0006: hccl rendezvous: " + missing + " did not come within " + std::to_string(limit.count()) +
                      " ms (HCCL_CONNECT_TIMEOUT). Creating a communicator is a collective: every rank of the group "
                      "must call it." +
                      (reason.empty() ? "" : " Store: " + reason));
}

void RequireOneMachine(const std::vector<ProcessIdentity>& ranks) {
  for (size_t rank = 1; rank < ranks.size(); ++rank) {
    if (ranks[0].SharesMemoryWith(ranks[rank])) continue;
    throw CommError(
        NPU_ERROR_NOT_SUPPORTED,
        "hccl: rank 0 (host " + ranks[0].host + ", user " + std::to_string(ranks[0].user) + ") and rank " +
            std::to_string(rank) + " (host " + ranks[rank].host + ", user " + std::to_string(ranks[rank].user) +
            ") do not share one machine, pid namespace and user. This version of npu-distributed exchanges device "
            "memory between processes of one machine only; across machines use backend \"gloo\" with CPU tensors.");
  }
}

}  // namespace

Meeting Rendezvous(KeyValueStore& store, int rank, int size, std::chrono::milliseconds limit) {
  const Clock::time_point deadline = Clock::now() + limit;
  Meeting meeting;
  ProcessIdentity self = ProcessIdentity::OfThisProcess();
  if (rank == 0) {
    std::random_device entropy;
    self.nonce = (static_cast<uint64_t>(entropy()) << 32) | entropy();
    meeting.page = ControlPage::Create(size, self.nonce);
    self.page_fd = meeting.page->fd();
  }
  store.set(RankKey(rank), self.Serialize());
  meeting.ranks.resize(static_cast<size_t>(size));
  for (int peer = 0; peer < size; ++peer) {
    if (peer == rank) {
      meeting.ranks[static_cast<size_t>(peer)] = self;
      continue;
    }
    std::string text;
    try {
      text = GetFresh(store, RankKey(peer), deadline);
    } catch (const std::exception& error) {
      ThrowConnectTimeout("rank " + std::to_string(peer), limit, error.what());
    }
    meeting.ranks[static_cast<size_t>(peer)] = ProcessIdentity::Parse(text);
  }
  RequireOneMachine(meeting.ranks);
  if (rank != 0) meeting.page = ControlPage::Open(meeting.ranks[0], size);

  ControlPage& page = *meeting.page;
  const auto join = [&](uint32_t expected) {
    page.joined().fetch_add(1, std::memory_order_seq_cst);
    page.bell().Ring();
    const auto everyone = [&] { return page.joined().load(std::memory_order_acquire) >= expected; };
    WaitFor(page.bell(), everyone, [&] {
      for (int peer = 0; peer < size; ++peer) {
        if (peer == rank || IsAlive(meeting.ranks[static_cast<size_t>(peer)]) || everyone()) continue;
        throw CommError(NPU_ERROR_SYSTEM, "EI0006: hccl rendezvous: rank " + std::to_string(peer) + " (process " +
                                              std::to_string(meeting.ranks[static_cast<size_t>(peer)].pid) +
                                              ") ended before the group was complete");
      }
      if (Clock::now() > deadline) ThrowConnectTimeout("some rank", limit, "");
    });
  };
  join(static_cast<uint32_t>(size));  // everybody has read every key
  store.set(RankKey(rank), kUsed);
  join(static_cast<uint32_t>(2 * size));  // no key can be mistaken for one of the next group
  page.Seal();
  return meeting;
}

}  // namespace npu::distributed
