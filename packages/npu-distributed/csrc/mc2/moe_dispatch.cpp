#include "mc2/moe_dispatch.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <string>

#include "mc2/fail_together.h"
#include "mc2/moe_exchange.h"
#include "mc2/moe_kernels.h"
#include "npu/kernels/streaming.h"

namespace npu::distributed {
namespace {

/// Rows as they travel: the row, then its scale.
int64_t WireBytes(const MoeRowFormat& format) {
  if (format.scale_bytes == 0) return format.row_bytes;
  return (format.row_bytes + 3) / 4 * 4 + (format.scale_bytes + 3) / 4 * 4;
}

int64_t ScaleOffset(const MoeRowFormat& format) { return (format.row_bytes + 3) / 4 * 4; }

}  // namespace

std::vector<int32_t> MoeActiveChoices(const int32_t* ids, int64_t tokens, int64_t slots, const MoeMask& mask,
                                      int64_t experts, std::string* wrong) {
  std::vector<int32_t> active(static_cast<size_t>(tokens * slots));
  for (int64_t i = 0; i < tokens * slots; ++i) {
    const bool is_active = mask.values == nullptr || mask.values[mask.per_slot ? i : i / slots] != 0;
    active[static_cast<size_t>(i)] = is_active ? ids[i] : MoeChoices::kInactive;
    if (!is_active || (ids[i] >= 0 && ids[i] < experts) || !wrong->empty()) continue;
    *wrong = "argument expert_ids: token " + std::to_string(i / slots) + ", slot " + std::to_string(i % slots) +
             ": expected an expert in [0, " + std::to_string(experts) + "), got " + std::to_string(ids[i]);
  }
  return active;
}

/// The state of one dispatch.
class MoeDispatch::Call {
 public:
  Call(const MoeDispatch& job, Collectives& group)
      : job_(job), group_(group), rank_(group.rank()), wire_bytes_(WireBytes(job.format)) {}

  static bool ByCopy(const MoeDispatch& job) { return job.smooth != nullptr; }
  static bool NeedsTable(const MoeDispatch& job) {
    return !ByCopy(job) && (job.format.format != NPU_MOE_COPY || job.token_scales != nullptr);
  }
  static size_t LongestBody(const MoeDispatch& job) {
    return static_cast<size_t>(job.most_tokens * job.slots) * 2 * sizeof(int32_t);
  }
  /// Items for one peer that one round carries, the same on all ranks.
  static int64_t RoundItems(const MoeDispatch& job) {
    const int64_t fit = kMoeRoundBytes / (job.placement.world * WireBytes(job.format));
    const int64_t most = job.most_tokens * (ByCopy(job) ? job.slots : 1);
    return std::max<int64_t>(1, std::min(fit, most));
  }
  static size_t RoundBytes(const MoeDispatch& job) {
    return static_cast<size_t>(job.placement.world * RoundItems(job) * WireBytes(job.format));
  }
  static size_t TableBytes(const MoeDispatch& job) {
    return NeedsTable(job) ? static_cast<size_t>(job.tokens * WireBytes(job.format)) : 0;
  }
  static size_t Aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

  void Run() {
    Announce();
    LayOut();
    WriteMetadata();
    MakeTable();
    Exchange();
    ClearRest();
  }

 private:
  /// A token of `source` and where its rows go here.
  struct Arrivals {
    std::vector<int32_t> item;      ///< per row, ascending: which of the source's items it is
    std::vector<int32_t> position;  ///< per row: where in expand_x
    size_t done = 0;
  };

  void Announce() {
    MoeAnnouncement mine;
    const MoePlacement& placement = job_.placement;
    mine.agreed = {{"moe_expert_num", placement.experts},
                   {"shared_expert_num", placement.shared_experts},
                   {"shared_expert_rank_num", placement.shared_ranks},
                   {"zero_expert_num + copy_expert_num + const_expert_num", job_.special_experts},
                   {"expert_ids.size(1)", job_.slots},
                   {"x.size(1)", job_.format.columns},
                   {"x.dtype", job_.format.in},
                   {"quant_mode", job_.quant_mode},
                   {"y_dtype", job_.format.out},
                   {"scales (0: none)", (job_.smooth != nullptr) + 2 * (job_.token_scales != nullptr)},
                   {"global_bs / ep_world_size (without global_bs: x.size(0))", job_.most_tokens}};
    own_ = MoeActiveChoices(job_.expert_ids, job_.tokens, job_.slots, job_.mask,
                            placement.experts + job_.special_experts, &mine.failure);
    if (job_.elastic != nullptr && job_.elastic[0] != 0 && mine.failure.empty()) {
      mine.failure = "argument elastic_info: scaling down is not supported, so element 0 should be 0, got " +
                     std::to_string(job_.elastic[0]);
    }
    const MoeChoices choices{job_.tokens, job_.slots, own_.data()};
    for (int peer = 0; peer < placement.world && mine.failure.empty(); ++peer) {
      outgoing_.push_back(CopiesFor(placement, rank_, choices, peer));
      const MoeCopies& copies = outgoing_.back();
      outgoing_tokens_.push_back(ByCopy(job_) ? std::vector<int32_t>{} : TokensOf(copies, job_.tokens));
      if (peer != rank_) mine.longest = std::max<int64_t>(mine.longest, ItemsFor(peer));
    }
    mine.tokens = job_.tokens;
    const size_t bytes = own_.size() * sizeof(int32_t);
    mine.body.resize(bytes * (job_.expert_scales != nullptr ? 2 : 1));
    if (bytes != 0) {
      std::memcpy(mine.body.data(), own_.data(), bytes);
      if (job_.expert_scales != nullptr) std::memcpy(mine.body.data() + bytes, job_.expert_scales, bytes);
    }
    const auto begin = std::chrono::steady_clock::now();
    peers_ = MoeAnnounce(group_, mine, LongestBody(job_), job_.scratch);
    if (job_.performance != nullptr) {
      const auto waited = std::chrono::steady_clock::now() - begin;
      const int64_t microseconds = std::chrono::duration_cast<std::chrono::microseconds>(waited).count();
      for (int peer = 0; peer < placement.world; ++peer) {
        if (peer != rank_) job_.performance[peer] += microseconds;
      }
    }
    for (const MoePeer& peer : peers_) {
      items_ = std::max(items_, peer.longest);
      const auto slots = static_cast<size_t>(peer.tokens * job_.slots);
      std::vector<int32_t> ids(slots);
      if (slots != 0) std::memcpy(ids.data(), peer.body.data(), slots * sizeof(int32_t));
      ids_.push_back(std::move(ids));
      std::vector<float> scales(peer.body.size() / sizeof(float) - slots);
      if (!scales.empty()) {
        std::memcpy(scales.data(), peer.body.data() + slots * sizeof(int32_t), scales.size() * sizeof(float));
      }
      expert_scales_.push_back(std::move(scales));
    }
  }

  int64_t ItemsFor(int peer) const {
    const auto at = static_cast<size_t>(peer);
    return static_cast<int64_t>(ByCopy(job_) ? outgoing_[at].copies.size() : outgoing_tokens_[at].size());
  }

  /// The receive layout: by local expert, then source.
  void LayOut() {
    const MoePlacement& placement = job_.placement;
    const auto world = static_cast<size_t>(placement.world);
    for (int source = 0; source < placement.world; ++source) {
      const auto at = static_cast<size_t>(source);
      incoming_.push_back(CopiesFor(placement, source, {peers_[at].tokens, job_.slots, ids_[at].data()}, rank_));
    }
    std::vector<std::vector<int32_t>> positions(world);
    for (int64_t local = 0; local < placement.LocalExperts(rank_); ++local) {
      const int64_t before = rows_;
      for (size_t source = 0; source < world; ++source) {
        const auto block = static_cast<int64_t>(incoming_[source].OfExpert(local).size());
        for (int64_t i = 0; i < block; ++i) positions[source].push_back(static_cast<int32_t>(rows_ + i));
        rows_ += block;
        job_.ep_recv_counts[local * placement.world + static_cast<int64_t>(source)] = static_cast<int32_t>(rows_);
      }
      job_.expert_token_nums[local] = job_.cumulative_nums ? rows_ : rows_ - before;
    }
    if (rows_ > job_.bound) {
      FailTogether(group_, "rank " + std::to_string(rank_) + " would get " + std::to_string(rows_) +
                               " rows, but there is room for " + std::to_string(job_.bound) +
                               ": the experts of a token should be distinct");
    }
    for (size_t source = 0; source < world; ++source) {
      const MoeCopies& copies = incoming_[source];
      Arrivals arrivals;
      if (ByCopy(job_)) {
        arrivals.item.resize(copies.copies.size());
        std::iota(arrivals.item.begin(), arrivals.item.end(), 0);
        arrivals.position = std::move(positions[source]);
      } else {
        // Rows by token, which is the order in which tokens arrive.
        const std::vector<int32_t> tokens = TokensOf(copies, peers_[source].tokens);
        std::vector<int32_t> item_of(static_cast<size_t>(peers_[source].tokens), -1);
        for (size_t i = 0; i < tokens.size(); ++i) item_of[static_cast<size_t>(tokens[i])] = static_cast<int32_t>(i);
        std::vector<size_t> next(tokens.size() + 1, 0);
        const auto item = [&](const MoeCopy& copy) {
          return static_cast<size_t>(item_of[static_cast<size_t>(copy.token)]);
        };
        for (const MoeCopy& copy : copies.copies) ++next[item(copy) + 1];
        std::partial_sum(next.begin(), next.end(), next.begin());
        arrivals.item.resize(copies.copies.size());
        arrivals.position.resize(copies.copies.size());
        for (size_t i = 0; i < copies.copies.size(); ++i) {
          const size_t to = next[item(copies.copies[i])]++;
          arrivals.item[to] = static_cast<int32_t>(item(copies.copies[i]));
          arrivals.position[to] = positions[source][i];
        }
      }
      arrivals_.push_back(std::move(arrivals));
    }
    streams_ = rows_ * job_.format.row_bytes >= NPU_STREAM_BYTES && job_.format.row_bytes >= NPU_STREAM_ROW;
  }

  void WriteMetadata() {
    const MoePlacement& placement = job_.placement;
    int64_t row = 0;
    for (int64_t local = 0; local < placement.LocalExperts(rank_); ++local) {
      for (int source = 0; source < placement.world; ++source) {
        const auto at = static_cast<size_t>(source);
        for (const MoeCopy& copy : incoming_[at].OfExpert(local)) {
          if (job_.assist_info != nullptr) {
            const int32_t triple[] = {source, copy.token, copy.slot};
            std::memcpy(job_.assist_info + 3 * row, triple, sizeof triple);
          }
          const bool weighted = copy.slot < job_.slots && !expert_scales_[at].empty();
          job_.expand_scales[row++] =
              weighted ? expert_scales_[at][static_cast<size_t>(copy.token * job_.slots + copy.slot)] : 0.0f;
        }
      }
    }
    std::fill(job_.expand_scales + rows_, job_.expand_scales + job_.bound, 0.0f);
    if (job_.assist_info != nullptr) std::fill(job_.assist_info + 3 * rows_, job_.assist_info + job_.assist_count, 0);
    const int64_t counts = placement.world * placement.LocalExperts(rank_);
    std::fill(job_.ep_recv_counts + counts, job_.ep_recv_counts + job_.ep_recv_length, 0);
    if (job_.tp_recv_counts != nullptr) *job_.tp_recv_counts = static_cast<int32_t>(rows_);
    if (job_.ordinals != nullptr) {
      std::vector<int32_t> seen(static_cast<size_t>(placement.experts), 0);
      for (size_t slot = 0; slot < own_.size(); ++slot) {
        const bool sent = own_[slot] >= 0 && own_[slot] < placement.experts;
        job_.ordinals[slot] = sent ? seen[static_cast<size_t>(own_[slot])]++ : 0;
      }
    }
  }

  /// A token as it travels, quantised for the expert of `slot` if that matters.
  void Quantise(int64_t token, int64_t slot, std::byte* row, std::byte* scale) const {
    const MoeRowFormat& format = job_.format;
    const std::byte* x = job_.x + token * TokenBytes();
    if (format.format == NPU_MOE_COPY) {
      std::memcpy(row, x, static_cast<size_t>(format.row_bytes));
      if (job_.token_scales != nullptr) std::memcpy(scale, job_.token_scales + token, sizeof(float));
      return;
    }
    const float* smooth = nullptr;
    if (job_.smooth != nullptr) {
      const int64_t expert = slot >= job_.slots
                                 ? slot - job_.slots
                                 : own_[static_cast<size_t>(token * job_.slots + slot)] + job_.placement.shared_experts;
      smooth = job_.smooth + expert * format.columns;
    }
    MoeRows().quantise(&format, x, smooth, row, scale);
  }

  int64_t TokenBytes() const { return job_.format.columns * npu_dtype_size(job_.format.in); }

  /// Every token as it travels, where that is the same for all its experts.
  void MakeTable() {
    std::byte* scratch = job_.scratch + MoeAnnounceScratch(job_.placement.world, LongestBody(job_));
    send_ = scratch;
    receive_ = send_ + Aligned(RoundBytes(job_));
    table_ = job_.x;
    if (!NeedsTable(job_)) return;
    std::byte* table = receive_ + Aligned(RoundBytes(job_));
    for (int64_t token = 0; token < job_.tokens; ++token) {
      std::byte* row = table + token * wire_bytes_;
      Quantise(token, 0, row, row + ScaleOffset(job_.format));
    }
    table_ = table;
  }

  /// Items [begin, end) for `peer` in one piece, packed into `room` unless they lie so already.
  Region Pack(int peer, int64_t begin, int64_t end, std::byte* room) const {
    if (begin >= end) return {};
    const auto at = static_cast<size_t>(peer);
    const auto bytes = static_cast<size_t>((end - begin) * wire_bytes_);
    if (ByCopy(job_)) {
      std::byte* row = room;
      for (int64_t i = begin; i < end; ++i, row += wire_bytes_) {
        const MoeCopy& copy = outgoing_[at].copies[static_cast<size_t>(i)];
        Quantise(copy.token, copy.slot, row, row + ScaleOffset(job_.format));
      }
      return {room, bytes};
    }
    const std::vector<int32_t>& tokens = outgoing_tokens_[at];
    const int64_t first = tokens[static_cast<size_t>(begin)];
    if (tokens[static_cast<size_t>(end - 1)] - first == end - 1 - begin) {
      return {const_cast<std::byte*>(table_) + first * wire_bytes_, bytes};
    }
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(room + (i - begin) * wire_bytes_, table_ + tokens[static_cast<size_t>(i)] * wire_bytes_,
                  static_cast<size_t>(wire_bytes_));
    }
    return {room, bytes};
  }

  void Place(int32_t position, const std::byte* item) const {
    const MoeRowFormat& format = job_.format;
    std::byte* row = job_.expand_x + position * format.row_bytes;
    if (streams_) npu_stream_copy(row, item, format.row_bytes);
    else std::memcpy(row, item, static_cast<size_t>(format.row_bytes));
    if (format.scale_bytes == 0) return;
    std::memcpy(job_.dynamic_scales + position * job_.scale_stride, item + ScaleOffset(format),
                static_cast<size_t>(format.scale_bytes));
  }

  void PlaceOwn() {
    const auto at = static_cast<size_t>(rank_);
    const Arrivals& arrivals = arrivals_[at];
    for (size_t i = 0; i < arrivals.item.size(); ++i) {
      const auto item = static_cast<size_t>(arrivals.item[i]);
      const int32_t position = arrivals.position[i];
      if (!ByCopy(job_)) {
        Place(position, table_ + outgoing_tokens_[at][item] * wire_bytes_);
      } else {
        const MoeCopy& copy = outgoing_[at].copies[item];
        Quantise(copy.token, copy.slot, job_.expand_x + position * job_.format.row_bytes,
                 job_.dynamic_scales + position * job_.scale_stride);
      }
    }
  }

  void Exchange() {
    const auto world = static_cast<size_t>(job_.placement.world);
    const int64_t length = RoundItems(job_);
    const int64_t room = length * wire_bytes_;
    std::vector<Region> inputs(world), outputs(world);
    for (int64_t begin = 0; begin < items_; begin += length) {
      for (size_t peer = 0; peer < world; ++peer) {
        if (static_cast<int>(peer) == rank_) continue;
        const auto offset = static_cast<int64_t>(peer) * room;
        inputs[peer] = Pack(static_cast<int>(peer), begin, std::min(begin + length, ItemsFor(static_cast<int>(peer))),
                            send_ + offset);
        const Arrivals& arrivals = arrivals_[peer];
        const int64_t items = arrivals.item.empty() ? 0 : arrivals.item.back() + 1;
        const int64_t count = std::clamp<int64_t>(items - begin, 0, length);
        outputs[peer] = count == 0 ? Region{} : Region{receive_ + offset, static_cast<size_t>(count * wire_bytes_)};
      }
      group_.AllToAll(ElementType::kUInt8, inputs, outputs);
      for (size_t peer = 0; peer < world; ++peer) {
        Arrivals& arrivals = arrivals_[peer];
        if (static_cast<int>(peer) == rank_) continue;
        for (; arrivals.done < arrivals.item.size() && arrivals.item[arrivals.done] < begin + length; ++arrivals.done) {
          Place(arrivals.position[arrivals.done], static_cast<const std::byte*>(outputs[peer].address) +
                                                      (arrivals.item[arrivals.done] - begin) * wire_bytes_);
        }
      }
    }
    PlaceOwn();
  }

  /// Rows that nothing came for are 0.
  void ClearRest() {
    npu_stream_zero(job_.expand_x + rows_ * job_.format.row_bytes, (job_.bound - rows_) * job_.format.row_bytes);
    const int64_t scaled = job_.format.scale_bytes != 0 ? rows_ : 0;
    std::memset(job_.dynamic_scales + scaled * job_.scale_stride, 0,
                static_cast<size_t>((job_.bound - scaled) * job_.scale_stride));
    npu_stream_fence();
  }

  const MoeDispatch& job_;
  Collectives& group_;
  const int rank_;
  const int64_t wire_bytes_;
  std::vector<int32_t> own_;  ///< the ids of this rank's tokens
  std::vector<MoePeer> peers_;
  std::vector<std::vector<int32_t>> ids_;          ///< by source
  std::vector<std::vector<float>> expert_scales_;  ///< by source; empty: none given
  std::vector<MoeCopies> outgoing_;                ///< by target
  std::vector<std::vector<int32_t>> outgoing_tokens_;
  std::vector<MoeCopies> incoming_;  ///< by source
  std::vector<Arrivals> arrivals_;
  int64_t items_ = 0;  ///< most of any pair of ranks
  int64_t rows_ = 0;
  bool streams_ = false;
  const std::byte* table_ = nullptr;
  std::byte* send_ = nullptr;
  std::byte* receive_ = nullptr;
};

size_t MoeDispatch::scratch_bytes() const {
  return MoeAnnounceScratch(placement.world, Call::LongestBody(*this)) + 2 * Call::Aligned(Call::RoundBytes(*this)) +
         Call::TableBytes(*this);
}

void MoeDispatch::Run(Collectives& group) const { Call(*this, group).Run(); }

}  // namespace npu::distributed
