#include "process_group/gloo_link.h"

#include <ATen/ops/from_blob.h>
#include <pybind11/chrono.h>
#include <torch/csrc/utils/pybind.h>

#include <array>
#include <cstring>
#include <map>
#include <mutex>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include "process_group/socket_address.h"
#include "transport/comm_error.h"

namespace py = pybind11;

namespace npu::distributed {
namespace {

using BackendPtr = c10::intrusive_ptr<c10d::Backend>;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;
using Clock = std::chrono::steady_clock;

// Tags beside those of the channels.
constexpr int kFarewellTag = 100;
constexpr int kNeverSentTag = 101;

/// Gloo has no wait without limit that ignores the time-out of its context.
constexpr std::chrono::hours kForever{24 * 365};
/// How long a rank that gives up tries to tell the others why.
constexpr std::chrono::milliseconds kFarewellLimit{300};

/// What a rank that breaks the link says to the others.
struct Farewell {
  uint32_t status;
  uint32_t length;
  char text[1400];
};

at::Tensor BytesAt(void* data, size_t bytes) {
  return at::from_blob(data, {static_cast<int64_t>(bytes)}, at::TensorOptions().dtype(at::kByte).device(at::kCPU));
}

class GlooLink;

class GlooOperation final : public LinkOperation {
 public:
  GlooOperation(GlooLink& link, std::vector<std::pair<int, WorkPtr>> works) : link_(link), works_(std::move(works)) {}
  void Wait() override;
  void WaitForEver() override { WaitFor(kForever); }

 private:
  void WaitFor(std::chrono::milliseconds limit);

  GlooLink& link_;
  std::vector<std::pair<int, WorkPtr>> works_;
};

class GlooLink final : public HostLink {
 public:
  GlooLink(BackendPtr gloo, std::chrono::milliseconds limit)
      : gloo_(std::move(gloo)), limit_(limit.count() > 0 ? limit : std::chrono::milliseconds(kForever)) {
    // Every peer may say one farewell at any time, so there is a receive for it from the beginning.
    for (int peer = 0; peer < gloo_->getSize(); ++peer) {
      if (peer == gloo_->getRank()) continue;
      auto letter = std::make_unique<Farewell>();
      std::memset(letter.get(), 0, sizeof *letter);
      std::vector<at::Tensor> room{BytesAt(letter.get(), sizeof *letter)};
      letters_[peer] = {std::move(letter), gloo_->recv(room, peer, kFarewellTag)};
    }
  }

  ~GlooLink() override {
    works_.clear();
    for (auto& [peer, letter] : letters_) letter.work.reset();
  }

  std::unique_ptr<LinkOperation> Start(Channel channel, std::span<const Parcel> sends,
                                       std::span<const Parcel> receives) override {
    const int tag = static_cast<int>(channel);
    std::vector<std::pair<int, WorkPtr>> works;
    // Receives first: then a peer need not ask whether it may send.
    for (const Parcel& parcel : receives) Post(parcel, tag, false, works);
    for (const Parcel& parcel : sends) Post(parcel, tag, true, works);
    return std::make_unique<GlooOperation>(*this, std::move(works));
  }

  void Break(npu_status status, const char* reason) noexcept override {
    {
      const std::lock_guard lock(mutex_);
      if (broken_) return;
      broken_ = true;
      reason_ = reason;
      farewell_.status = static_cast<uint32_t>(status);
      farewell_.length = static_cast<uint32_t>(std::min(reason_.size(), sizeof farewell_.text));
      std::memcpy(farewell_.text, reason_.data(), farewell_.length);
    }
    for (auto& [peer, letter] : letters_) {
      try {
        std::vector<at::Tensor> tensors{BytesAt(&farewell_, sizeof farewell_)};
        works_.push_back(gloo_->send(tensors, peer, kFarewellTag));
      } catch (const std::exception&) {
        continue;  // that connection has ended already
      }
    }
    for (const WorkPtr& work : works_) {
      try {
        work->wait(kFarewellLimit);
      } catch (const std::exception&) {
        continue;
      }
    }
    // A wait that passes its limit ends every connection of the context, here and, as the sockets close, at the peers.
    for (auto& [peer, letter] : letters_) {
      std::byte unused{};
      try {
        std::vector<at::Tensor> tensors{BytesAt(&unused, 1)};
        gloo_->recv(tensors, peer, kNeverSentTag)->wait(std::chrono::milliseconds(1));
      } catch (const std::exception&) {
        continue;
      }
    }
  }

  std::chrono::milliseconds limit() const { return limit_; }

  /// Turns what Gloo threw into what it means.
  [[noreturn]] void Throw(int peer, const std::string& detail, bool timed_out) {
    const std::lock_guard lock(mutex_);
    if (broken_) throw LinkError(LinkError::Cause::kBroken, peer, reason_);
    LinkError error(timed_out ? LinkError::Cause::kTimeout : LinkError::Cause::kLost, peer, detail);
    if (!timed_out) ReadLetter(peer, error);
    throw error;
  }

 private:
  struct Letter {
    std::unique_ptr<Farewell> text;
    WorkPtr work;
    bool read = false;
  };

  void Post(const Parcel& parcel, int tag, bool is_send, std::vector<std::pair<int, WorkPtr>>& works) {
    if (parcel.bytes == 0) return;
    std::vector<at::Tensor> tensors{BytesAt(parcel.data, parcel.bytes)};
    try {
      works.emplace_back(parcel.peer,
                         is_send ? gloo_->send(tensors, parcel.peer, tag) : gloo_->recv(tensors, parcel.peer, tag));
    } catch (const std::exception& error) {
      Throw(parcel.peer, error.what(), false);
    }
  }

  /// The connection to `peer` has ended, so its farewell has come or never will: the wait does not block.
  void ReadLetter(int peer, LinkError& error) {
    Letter& letter = letters_.at(peer);
    if (!letter.read) {
      try {
        letter.read = letter.work->wait(std::chrono::milliseconds(1));
      } catch (const std::exception&) {
        return;
      }
    }
    if (!letter.read) return;
    error.reason.assign(letter.text->text, std::min<size_t>(letter.text->length, sizeof letter.text->text));
    error.reason_status = static_cast<npu_status>(letter.text->status);
  }

  const BackendPtr gloo_;
  const std::chrono::milliseconds limit_;
  std::map<int, Letter> letters_;
  std::mutex mutex_;
  bool broken_ = false;
  std::string reason_;
  Farewell farewell_{};
  std::vector<WorkPtr> works_;
};

void GlooOperation::Wait() { WaitFor(link_.limit()); }

void GlooOperation::WaitFor(std::chrono::milliseconds limit) {
  for (auto& [peer, work] : works_) {
    const Clock::time_point begin = Clock::now();
    try {
      work->wait(limit);
    } catch (const std::exception& error) {
      link_.Throw(peer, error.what(), Clock::now() - begin >= limit);
    }
  }
  works_.clear();
}

/// Gloo's headers are no part of torch's, so the object is made in Python.
BackendPtr MakeGloo(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size,
                    std::chrono::milliseconds connect_limit) {
  const SocketAddress address = SocketAddress::OfEnvironment();
  const py::gil_scoped_acquire gil;
  const py::module_ c10d = py::module_::import("torch._C._distributed_c10d");
  if (!py::hasattr(c10d, "ProcessGroupGloo")) {
    throw CommError(
        NPU_ERROR_NOT_SUPPORTED,
        "hccl: the ranks of this group live on several machines, which takes Gloo, and this torch was built "
        "without it; keep a group on one machine or install a torch with Gloo");
  }
  const py::object kind = c10d.attr("ProcessGroupGloo");
  py::object device;
  if (!address.interface.empty()) {
    device = kind.attr("create_device")(py::arg("interface") = address.interface);
  } else if (!address.ip.empty()) {
    device = kind.attr("create_device")(py::arg("hostname") = address.ip);
  } else {
    device = kind.attr("create_default_device")();
  }
  py::object options = kind.attr("_Options")();
  options.attr("_timeout") = connect_limit;
  options.attr("_devices") = py::make_tuple(device);
  options.attr("_threads") = 1;
  return kind(store, rank, size, options).cast<BackendPtr>();
}

}  // namespace

LinkFactory GlooLinks(c10::intrusive_ptr<c10d::Store> store, const CommunicatorSettings& settings) {
  return [store = std::move(store), rank = settings.rank, size = settings.size,
          connect_limit = settings.connect_timeout,
          limit = settings.execution_timeout](uint64_t group) -> std::unique_ptr<HostLink> {
    try {
      // A name of its own for every group: addresses of an earlier one may still be in the store.  A connection of its
      // own: Gloo blocks it until its peers have come, and other groups meet at the same time.
      auto own = c10::make_intrusive<c10d::PrefixStore>("gloo/" + std::to_string(group), store->clone());
      return std::make_unique<GlooLink>(MakeGloo(own, rank, size, connect_limit), limit);
    } catch (const CommError&) {
      throw;
    } catch (const std::exception& error) {
      throw CommError(NPU_ERROR_SYSTEM,
                      std::string("EI0006: hccl: connecting the machines of the group failed: ") + error.what() +
                          ". Each must reach the others' address: HCCL_SOCKET_IFNAME or HCCL_IF_IP says which one a "
                          "machine offers");
    }
  };
}

}  // namespace npu::distributed
