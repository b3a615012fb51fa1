#include "transport/rendezvous.h"

#include <thread>

#include "transport/comm_error.h"

namespace npu::distributed {
namespace {

using Clock = std::chrono::steady_clock;

std::string RankKey(int rank) { return "rank/" + std::to_string(rank); }
/// Descriptor of the control page that the lowest rank of a host has made.
std::string PageKey(int rank) { return "page/" + std::to_string(rank); }

std::chrono::milliseconds Remaining(Clock::time_point deadline) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
  return std::max(left, std::chrono::milliseconds(1));
}

/// What a rank leaves under its keys once everybody has read them: a later group of the same name (init after destroy,
/// on a store that lives as long as the job) must not meet the identity of this one.
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

std::vector<ProcessIdentity> MeetInStore(KeyValueStore& store, int rank, int size, std::chrono::milliseconds limit,
                                         Clock::time_point deadline) {
  std::vector<ProcessIdentity> group(static_cast<size_t>(size));
  ProcessIdentity self = ProcessIdentity::OfThisProcess();
  store.set(RankKey(rank), self.Serialize());
  for (int peer = 0; peer < size; ++peer) {
    ProcessIdentity& identity = group[static_cast<size_t>(peer)];
    if (peer == rank) {
      identity = self;
    } else {
      std::string text;
      try {
        text = GetFresh(store, RankKey(peer), deadline);
      } catch (const std::exception& error) {
        ThrowConnectTimeout("rank " + std::to_string(peer), limit, error.what());
      }
      identity = ProcessIdentity::Parse(text);
    }
    identity.rank = peer;
  }
  return group;
}

std::unique_ptr<ControlPage> OpenPage(KeyValueStore& store, const ProcessIdentity& creator, int size, int regions,
                                      std::chrono::milliseconds limit, Clock::time_point deadline) {
  std::string text;
  try {
    text = GetFresh(store, PageKey(creator.rank), deadline);
  } catch (const std::exception& error) {
    ThrowConnectTimeout("the control page of rank " + std::to_string(creator.rank), limit, error.what());
  }
  return ControlPage::Open(creator, std::stoi(text), size, regions);
}

}  // namespace

void Retire(KeyValueStore& store, const Meeting& meeting, int rank) {
  store.set(RankKey(rank), kUsed);
  if (meeting.local_rank == 0) store.set(PageKey(rank), kUsed);
}

Meeting Rendezvous(KeyValueStore& store, int rank, int size, std::chrono::milliseconds limit) {
  const Clock::time_point deadline = Clock::now() + limit;
  Meeting meeting;
  meeting.group = MeetInStore(store, rank, size, limit, deadline);
  meeting.hosts = HostMap::Of(meeting.group);
  meeting.local_rank = meeting.hosts.IndexOf(rank);
  for (const int member : meeting.hosts.MembersOf(meeting.hosts.HostOf(rank))) {
    meeting.ranks.push_back(meeting.group[static_cast<size_t>(member)]);
  }
  const auto local_size = static_cast<int>(meeting.ranks.size());
  const int regions = 2 * size + 2;  // a collective announces one or two for each rank of the group
  if (meeting.local_rank == 0) {
    meeting.page = ControlPage::Create(local_size, regions, meeting.ranks.front().nonce);
    store.set(PageKey(rank), std::to_string(meeting.page->fd()));
  } else {
    meeting.page = OpenPage(store, meeting.ranks.front(), local_size, regions, limit, deadline);
  }

  ControlPage& page = *meeting.page;
  const auto join = [&](uint32_t expected) {
    page.joined().fetch_add(1, std::memory_order_seq_cst);
    page.bell().Ring();
    const auto everyone = [&] { return page.joined().load(std::memory_order_acquire) >= expected; };
    WaitFor(page.bell(), everyone, [&] {
      for (const ProcessIdentity& peer : meeting.ranks) {
        if (peer.rank == rank || IsAlive(peer) || everyone()) continue;
        throw CommError(NPU_ERROR_SYSTEM, "EI0006: hccl rendezvous: rank " + std::to_string(peer.rank) + " (process " +
                                              std::to_string(peer.pid) + ") ended before the group was complete");
      }
      if (Clock::now() > deadline) ThrowConnectTimeout("some rank", limit, "");
    });
  };
  join(static_cast<uint32_t>(local_size));  // everybody has read every key and mapped the page
  page.Seal();
  if (meeting.hosts.count() > 1) return meeting;
  Retire(store, meeting, rank);
  join(static_cast<uint32_t>(2 * local_size));  // no key can be mistaken for one of the next group
  return meeting;
}

}  // namespace npu::distributed
