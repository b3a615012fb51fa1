#include "transport/rendezvous.h"

#include <algorithm>
#include <optional>
#include <thread>

#include "transport/comm_error.h"

namespace npu::distributed {
namespace {

using Clock = std::chrono::steady_clock;

std::string RankKey(int rank) { return "rank/" + std::to_string(rank); }
/// Descriptor of the control page that the lowest rank of a host has made.
std::string PageKey(int rank) { return "page/" + std::to_string(rank); }

/// What a rank leaves under its keys once everybody has read them: a later group of the same name (init after destroy,
/// on a store that lives as long as the job) must not meet the identity of this one.
constexpr const char* kUsed = "used";

constexpr std::chrono::microseconds kFirstPoll{100};
constexpr std::chrono::microseconds kLongestPoll{5000};
/// How often a rank that waits for a key looks whether its peers live.
constexpr std::chrono::milliseconds kLookInterval{200};
/// A process that is ending loses its connections a moment before it counts as ended.
constexpr std::chrono::seconds kEndingTime{1};

/// One rank on its way to a meeting.
class Arrival {
 public:
  Arrival(KeyValueStore& store, const MeetingSettings& settings)
      : store_(store),
        settings_(settings),
        deadline_(Clock::now() + settings.limit),
        self_(ProcessIdentity::OfThisProcess()) {}

  Meeting Meet();
  /// Takes back what this rank has put into the store: it will not come.
  void Withdraw() noexcept;

 private:
  void ExchangeIdentities();
  std::unique_ptr<ControlPage> SharePage(int local_size);
  void Join(uint32_t expected);
  void Set(const std::string& key, const std::string& value);
  std::string Get(const std::string& key, const std::string& what);
  [[noreturn]] void ThrowStoreFailure(const std::string& what, const std::string& reason);
  [[noreturn]] void ThrowTimeout(const std::string& missing) const;
  /// Throws when a peer has ended, unless `complete`: then it had come.
  template <class Complete>
  void ThrowIfEnded(Complete complete) const;
  std::string NameOf(int rank) const {
    return settings_.names.empty() ? "rank " + std::to_string(rank) : settings_.names[static_cast<size_t>(rank)];
  }

  KeyValueStore& store_;
  const MeetingSettings& settings_;
  const Clock::time_point deadline_;
  const ProcessIdentity self_;
  Clock::time_point next_look_{};
  Meeting meeting_;
  size_t known_ = 0;  ///< identities of the group that have been read, the lowest ranks first
};

void Arrival::ThrowTimeout(const std::string& missing) const {
  throw CommError(NPU_ERROR_TIMEOUT, "EI0006: hccl rendezvous: " + missing + " did not come within " +
                                         std::to_string(settings_.limit.count()) +
                                         " ms (HCCL_CONNECT_TIMEOUT). Creating a communicator is a collective: every "
                                         "rank of the group must call it.");
}

template <class Complete>
void Arrival::ThrowIfEnded(Complete complete) const {
  for (int peer = 0; peer < settings_.size; ++peer) {
    if (peer == settings_.rank) continue;
    std::optional<ProcessIdentity> ended;
    if (static_cast<size_t>(peer) < known_) {
      const ProcessIdentity& identity = meeting_.group[static_cast<size_t>(peer)];
      if (identity.SharesMemoryWith(self_) && !IsAlive(identity)) ended = identity;
    } else if (settings_.ended) {
      ended = settings_.ended(peer);
    }
    if (!ended || complete()) continue;
    throw CommError(NPU_ERROR_SYSTEM, "EI0006: hccl rendezvous: " + NameOf(peer) + " (process " +
                                          std::to_string(ended->pid) + ") ended before the group was complete");
  }
}

void Arrival::ThrowStoreFailure(const std::string& what, const std::string& reason) {
  // The store may have gone with the rank that kept it.
  const Clock::time_point end = Clock::now() + kEndingTime;
  while (Clock::now() < end) {
    ThrowIfEnded([] { return false; });
    std::this_thread::sleep_for(kLongestPoll);
  }
  throw CommError(NPU_ERROR_SYSTEM, "EI0006: hccl rendezvous: " + store_.name + " failed while waiting for " + what +
                                        ": " + reason.substr(0, reason.find('\n')));  // the rest is a stack
}

void Arrival::Set(const std::string& key, const std::string& value) {
  try {
    store_.set(key, value);
  } catch (const std::exception& error) {
    ThrowStoreFailure("the other ranks", error.what());
  }
}

std::string Arrival::Get(const std::string& key, const std::string& what) {
  for (auto pause = kFirstPoll;; pause = std::min(2 * pause, kLongestPoll)) {
    std::optional<std::string> text;
    try {
      text = store_.find(key);
    } catch (const std::exception& error) {
      ThrowStoreFailure(what, error.what());
    }
    if (text && *text != kUsed) return *text;
    if (settings_.check) settings_.check();
    const Clock::time_point now = Clock::now();
    if (now >= next_look_) {
      ThrowIfEnded([] { return false; });
      next_look_ = now + kLookInterval;
    }
    if (now >= deadline_) ThrowTimeout(what);
    std::this_thread::sleep_for(pause);
  }
}

void Arrival::ExchangeIdentities() {
  meeting_.group.resize(static_cast<size_t>(settings_.size));
  Set(RankKey(settings_.rank), self_.Serialize());
  for (int peer = 0; peer < settings_.size; ++peer) {
    ProcessIdentity& identity = meeting_.group[static_cast<size_t>(peer)];
    identity = peer == settings_.rank ? self_ : ProcessIdentity::Parse(Get(RankKey(peer), NameOf(peer)));
    identity.rank = peer;
    ++known_;
  }
}

std::unique_ptr<ControlPage> Arrival::SharePage(int local_size) {
  const int regions = 2 * settings_.size + 2;  // a collective announces one or two for each rank of the group
  const ProcessIdentity& creator = meeting_.ranks.front();
  if (meeting_.local_rank == 0) {
    std::unique_ptr<ControlPage> page = ControlPage::Create(local_size, regions, creator.nonce);
    Set(PageKey(settings_.rank), std::to_string(page->fd()));
    return page;
  }
  const std::string text = Get(PageKey(creator.rank), "the control page of " + NameOf(creator.rank));
  return ControlPage::Open(creator, std::stoi(text), local_size, regions);
}

void Arrival::Join(uint32_t expected) {
  ControlPage& page = *meeting_.page;
  page.joined().fetch_add(1, std::memory_order_seq_cst);
  page.bell().Ring();
  const auto everyone = [&] { return page.joined().load(std::memory_order_acquire) >= expected; };
  WaitFor(page.bell(), everyone, [&] {
    if (settings_.check) settings_.check();
    ThrowIfEnded(everyone);
    if (Clock::now() > deadline_) ThrowTimeout("some rank");
  });
}

Meeting Arrival::Meet() {
  ExchangeIdentities();
  meeting_.hosts = HostMap::Of(meeting_.group);
  meeting_.local_rank = meeting_.hosts.IndexOf(settings_.rank);
  for (const int member : meeting_.hosts.MembersOf(meeting_.hosts.HostOf(settings_.rank))) {
    meeting_.ranks.push_back(meeting_.group[static_cast<size_t>(member)]);
  }
  const auto local_size = static_cast<int>(meeting_.ranks.size());
  meeting_.page = SharePage(local_size);
  Join(static_cast<uint32_t>(local_size));  // everybody has read every key and mapped the page
  meeting_.page->Seal();
  if (meeting_.hosts.count() == 1) {
    Retire(store_, meeting_, settings_.rank);
    Join(static_cast<uint32_t>(2 * local_size));  // no key can be mistaken for one of the next group
  }
  return std::move(meeting_);
}

void Arrival::Withdraw() noexcept {
  try {
    Retire(store_, meeting_, settings_.rank);
  } catch (const std::exception&) {
    return;  // a store that has gone keeps nothing
  }
}

}  // namespace

void Retire(KeyValueStore& store, const Meeting& meeting, int rank) {
  store.set(RankKey(rank), kUsed);
  if (meeting.page && meeting.local_rank == 0) store.set(PageKey(rank), kUsed);
}

Meeting Rendezvous(KeyValueStore& store, const MeetingSettings& settings) {
  Arrival arrival(store, settings);
  try {
    return arrival.Meet();
  } catch (const CommError& error) {
    // This process lives on and may come to another meeting of the same name.
    if (error.status() == NPU_ERROR_STOPPED) arrival.Withdraw();
    throw;
  }
}

}  // namespace npu::distributed
