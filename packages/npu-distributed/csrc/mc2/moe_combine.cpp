#include "mc2/moe_combine.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>

#include "mc2/fail_together.h"
#include "mc2/moe_exchange.h"
#include "mc2/moe_kernels.h"

namespace npu::distributed {
namespace {

/// One row that goes from an expert's rank to a token's rank, as the side that knows it tells the other.
struct Entry {
  int32_t token;
  int32_t place;    ///< with assist_info: the slot; with ordinals: the expert on its rank
  int32_t ordinal;  ///< with ordinals: number of the row among those of this expert and token rank
};

/// A row on either side of the way.  Both sides have them in the same order, by token.
struct Outgoing {
  int32_t token;
  int64_t row;  ///< of expand_x
};
struct Incoming {
  int32_t token;
  int32_t slot;
};

constexpr int64_t kGroup = 8;  // elements with one scale in int8 transit

size_t Aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

std::string Place(const char* what, int64_t number) { return std::string(what) + ' ' + std::to_string(number); }

}  // namespace

/// The state of one combine.
class MoeCombine::Call {
 public:
  Call(const MoeCombine& job, Collectives& group)
      : job_(job), group_(group), rank_(group.rank()), world_(static_cast<size_t>(job.placement.world)) {}

  static int64_t Slots(const MoeCombine& job) { return job.slots + job.placement.shared_experts; }
  static int64_t RowBytes(const MoeCombine& job) { return job.columns * npu_dtype_size(job.in); }
  static int64_t ScaleOffset(const MoeCombine& job) { return (job.columns + 1) / 2 * 2; }
  static int64_t WireBytes(const MoeCombine& job) {
    if (!job.int8_transit) return RowBytes(job);
    return ScaleOffset(job) + (job.columns + kGroup - 1) / kGroup * npu_dtype_size(job.in);
  }
  /// Tokens of every rank that one round carries, the same on all ranks.
  static int64_t RoundTokens(const MoeCombine& job) {
    constexpr int64_t kLeast = 8;  // with many ranks rounds must not become tiny
    const int64_t fit = kMoeRoundBytes / (job.placement.world * Slots(job) * WireBytes(job));
    return std::max<int64_t>(1, std::min(std::max(fit, kLeast), job.most_tokens));
  }
  static size_t ReceiveBytes(const MoeCombine& job) {
    return static_cast<size_t>(RoundTokens(job) * Slots(job) * WireBytes(job));
  }
  static size_t SendBytes(const MoeCombine& job) {
    return ReceiveBytes(job) * static_cast<size_t>(job.placement.world);
  }
  /// Entries that this rank may tell (rows of expand_x, or slots of its tokens) and hear.
  static int64_t MostTold(const MoeCombine& job) { return job.by_rows ? job.expand_rows : job.tokens * Slots(job); }
  static int64_t MostHeard(const MoeCombine& job) { return job.by_rows ? job.tokens * Slots(job) : job.expand_rows; }
  static size_t EntryBytes(int64_t entries) { return Aligned(static_cast<size_t>(entries) * sizeof(Entry)); }
  static size_t LongestBody(const MoeCombine& job) {
    return static_cast<size_t>(job.placement.world) * sizeof(int32_t);
  }

  void Run() {
    std::byte* scratch = job_.scratch + MoeAnnounceScratch(job_.placement.world, LongestBody(job_));
    told_ = scratch;
    heard_ = told_ + EntryBytes(MostTold(job_));
    send_ = heard_ + EntryBytes(MostHeard(job_));
    receive_ = send_ + Aligned(SendBytes(job_));
    Announce();
    TradeEntries();
    if (job_.by_rows) ReadSlots();
    else ReadRows();
    RequireAllSlots();
    sent_.resize(world_, 0);
    received_.resize(world_, 0);
    rows_.resize(static_cast<size_t>(RoundTokens(job_) * Slots(job_)));
    for (int64_t begin = 0; begin < most_; begin += RoundTokens(job_)) Round(begin, begin + RoundTokens(job_));
  }

 private:
  // ---- who sends what ----------------------------------------------------------------------------------------------

  void Announce() {
    const MoePlacement& placement = job_.placement;
    MoeAnnouncement mine;
    mine.agreed = {{"moe_expert_num", placement.experts},
                   {"shared_expert_num", placement.shared_experts},
                   {"shared_expert_rank_num", placement.shared_ranks},
                   {"zero_expert_num", job_.zero_experts},
                   {"copy_expert_num", job_.copy_experts},
                   {"const_expert_num", job_.const_experts},
                   {"expert_ids.size(1)", job_.slots},
                   {"expand_x.size(1)", job_.columns},
                   {"expand_x.dtype", job_.in},
                   {"comm_quant_mode", job_.int8_transit ? 2 : 0},
                   {"global_bs / ep_world_size (without global_bs: expert_ids.size(0))", job_.most_tokens}};
    ids_ =
        MoeActiveChoices(job_.expert_ids, job_.tokens, job_.slots, job_.mask,
                         placement.experts + job_.zero_experts + job_.copy_experts + job_.const_experts, &mine.failure);
    if (job_.elastic != nullptr && job_.elastic[0] != 0 && mine.failure.empty()) {
      mine.failure = "argument elastic_info: scaling down is not supported, so element 0 should be 0, got " +
                     std::to_string(job_.elastic[0]);
    }
    choices_ = {job_.tokens, job_.slots, ids_.data()};
    entries_.resize(world_);
    sources_.resize(world_);
    if (mine.failure.empty()) {
      if (job_.by_rows) EntriesOfRows(&mine.failure);
      else EntriesOfSlots();
    }
    mine.tokens = job_.tokens;
    std::vector<int32_t> counts;
    for (const std::vector<Entry>& entries : entries_) counts.push_back(static_cast<int32_t>(entries.size()));
    mine.body.resize(counts.size() * sizeof(int32_t));
    std::memcpy(mine.body.data(), counts.data(), mine.body.size());

    const auto begin = std::chrono::steady_clock::now();
    peers_ = MoeAnnounce(group_, mine, LongestBody(job_), job_.scratch);
    if (job_.performance != nullptr) {
      const auto waited = std::chrono::steady_clock::now() - begin;
      const int64_t microseconds = std::chrono::duration_cast<std::chrono::microseconds>(waited).count();
      for (size_t peer = 0; peer < world_; ++peer) {
        if (static_cast<int>(peer) != rank_) job_.performance[peer] += microseconds;
      }
    }
    for (const MoePeer& peer : peers_) most_ = std::max(most_, peer.tokens);
  }

  /// With assist_info the expert's side knows: an entry for every row, by token.
  void EntriesOfRows(std::string* wrong) {
    const int64_t last = job_.placement.world * job_.placement.LocalExperts(rank_) - 1;
    const int64_t rows = job_.ep_send_counts[last];
    const int64_t most = std::min(job_.expand_rows, job_.assist_rows);
    if (rows < 0 || rows > most) {
      *wrong = "argument ep_send_counts: expected a last element in [0, " + std::to_string(most) +
               "], the rows that expand_x and assist_info_for_combine have room for, got " + std::to_string(rows);
      return;
    }
    for (int64_t row = 0; row < rows; ++row) {
      int32_t triple[3];
      std::memcpy(triple, job_.assist_info + 3 * row, sizeof triple);
      if (triple[0] < 0 || triple[0] >= job_.placement.world || triple[1] < 0 || triple[1] >= job_.most_tokens ||
          triple[2] < 0 || triple[2] >= Slots(job_)) {
        *wrong = "argument assist_info_for_combine: row " + std::to_string(row) + ": expected a rank below " +
                 std::to_string(job_.placement.world) + ", a token below " + std::to_string(job_.most_tokens) +
                 " and a slot below " + std::to_string(Slots(job_)) + ", got rank " + std::to_string(triple[0]) +
                 ", token " + std::to_string(triple[1]) + ", slot " + std::to_string(triple[2]);
        return;
      }
      const auto target = static_cast<size_t>(triple[0]);
      entries_[target].push_back({triple[1], triple[2], static_cast<int32_t>(row)});
    }
    for (size_t target = 0; target < world_; ++target) {
      std::vector<Entry>& entries = entries_[target];
      std::stable_sort(entries.begin(), entries.end(),
                       [](const Entry& a, const Entry& b) { return a.token < b.token; });
      for (size_t i = 0; i < entries.size(); ++i) sources_[target].push_back({entries[i].token, entries[i].ordinal});
    }
  }

  /// With ordinals the token's side knows: an entry for every slot.
  void EntriesOfSlots() {
    const MoePlacement& placement = job_.placement;
    int32_t active = 0;
    incoming_.resize(world_);
    for (int64_t token = 0; token < job_.tokens; ++token) {
      const auto number = static_cast<int32_t>(token);
      for (int64_t slot = 0; slot < job_.slots; ++slot) {
        const int32_t expert = ids_[static_cast<size_t>(token * job_.slots + slot)];
        if (expert < 0 || expert >= placement.experts) continue;
        const int rank = placement.RankOf(expert);
        entries_[static_cast<size_t>(rank)].push_back({number,
                                                       static_cast<int32_t>(expert - placement.FirstExpert(rank)),
                                                       job_.ordinals[token * job_.slots + slot]});
        incoming_[static_cast<size_t>(rank)].push_back({number, static_cast<int32_t>(slot)});
      }
      if (!choices_.IsActive(token)) continue;
      for (int64_t expert = 0; expert < placement.shared_experts; ++expert) {
        const auto rank = static_cast<size_t>(placement.SharedRank(rank_, expert));
        entries_[rank].push_back({number, 0, active});
        incoming_[rank].push_back({number, static_cast<int32_t>(job_.slots + expert)});
      }
      ++active;
    }
  }

  int64_t Announced(size_t from, int to) const {
    int32_t count = 0;
    std::memcpy(&count, peers_[from].body.data() + static_cast<size_t>(to) * sizeof count, sizeof count);
    return count;
  }

  void TradeEntries() {
    std::vector<Region> inputs(world_), outputs(world_);
    std::byte* at = told_;
    for (size_t peer = 0; peer < world_; ++peer) {
      const size_t bytes = entries_[peer].size() * sizeof(Entry);
      if (bytes == 0) continue;
      std::memcpy(at, entries_[peer].data(), bytes);
      inputs[peer] = {at, bytes};
      at += bytes;
    }
    at = heard_;
    int64_t total = 0;
    for (size_t peer = 0; peer < world_; ++peer) {
      const int64_t count = Announced(peer, rank_);
      total += count;
      if (total > MostHeard(job_)) {
        Fail(job_.by_rows
                 ? Place("rank", rank_) + " is to get " + std::to_string(total) + " or more rows, but has only " +
                       std::to_string(MostHeard(job_)) + " slots. Pass combine what dispatch has returned"
                 : Place("rank", rank_) + " is asked for " + std::to_string(total) +
                       " or more rows, but expand_x has " + std::to_string(MostHeard(job_)));
      }
      if (count == 0) continue;
      outputs[peer] = {at, static_cast<size_t>(count) * sizeof(Entry)};
      at += outputs[peer].bytes;
    }
    group_.AllToAll(ElementType::kUInt8, inputs, outputs);
    trade_.resize(world_);
    for (size_t peer = 0; peer < world_; ++peer) {
      trade_[peer].resize(outputs[peer].bytes / sizeof(Entry));
      if (outputs[peer].bytes != 0) std::memcpy(trade_[peer].data(), outputs[peer].address, outputs[peer].bytes);
    }
  }

  /// The token's side with assist_info: every entry is a row for one of its slots.
  void ReadSlots() {
    incoming_.resize(world_);
    for (size_t peer = 0; peer < world_; ++peer) {
      for (const Entry& entry : trade_[peer]) {
        if (entry.token >= job_.tokens) {
          Fail("argument assist_info_for_combine of rank " + std::to_string(peer) + ": row " +
               std::to_string(entry.ordinal) + " is for token " + std::to_string(entry.token) + " of rank " +
               std::to_string(rank_) + ", which has " + std::to_string(job_.tokens));
        }
        incoming_[peer].push_back({entry.token, entry.place});
      }
    }
  }

  /// The expert's side with ordinals: every entry asks for a row.
  void ReadRows() {
    const int64_t experts = job_.placement.LocalExperts(rank_);
    const int64_t blocks = experts * job_.placement.world;
    int64_t before = 0;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t end = job_.ep_send_counts[block];
      if (end < before || end > job_.expand_rows) {
        Fail("argument ep_send_counts: element " + std::to_string(block) + ": expected a number in [" +
             std::to_string(before) + ", " + std::to_string(job_.expand_rows) + "], got " + std::to_string(end));
      }
      before = end;
    }
    for (size_t peer = 0; peer < world_; ++peer) {
      for (const Entry& entry : trade_[peer]) {
        const int64_t block = entry.place * job_.placement.world + static_cast<int64_t>(peer);
        const int64_t begin = block == 0 ? 0 : job_.ep_send_counts[block - 1];
        const int64_t count = job_.ep_send_counts[block] - begin;
        if (entry.ordinal < 0 || entry.ordinal >= count) {
          Fail("argument expand_idx of rank " + std::to_string(peer) + ": token " + std::to_string(entry.token) +
               " asks for row " + std::to_string(entry.ordinal) + " of its rows at expert " +
               std::to_string(job_.placement.IsShared(rank_) ? job_.placement.SharedExpertOf(rank_)
                                                             : job_.placement.FirstExpert(rank_) + entry.place) +
               ", but rank " + std::to_string(rank_) + " has " + std::to_string(count) + " of them");
        }
        sources_[peer].push_back({entry.token, begin + entry.ordinal});
      }
    }
  }

  /// Exactly one row for every slot whose expert is on some rank.
  void RequireAllSlots() {
    const int64_t slots = Slots(job_);
    std::vector<uint8_t> seen(static_cast<size_t>(job_.tokens * slots), 0);
    for (const std::vector<Incoming>& rows : incoming_) {
      for (const Incoming& row : rows) {
        uint8_t& count = seen[static_cast<size_t>(row.token * slots + row.slot)];
        if (count++ != 0) Fail("two rows come for " + Describe(row.token, row.slot));
      }
    }
    for (int64_t token = 0; token < job_.tokens; ++token) {
      const bool active = choices_.IsActive(token);
      for (int64_t slot = 0; slot < slots; ++slot) {
        const bool expected = slot >= job_.slots ? active : IsSent(token, slot);
        if (expected && seen[static_cast<size_t>(token * slots + slot)] == 0) {
          Fail("no row comes for " + Describe(token, slot) +
               ". Pass combine the expert_ids and x_active_mask that dispatch got");
        }
      }
    }
  }

  bool IsSent(int64_t token, int64_t slot) const {
    const int32_t expert = ids_[static_cast<size_t>(token * job_.slots + slot)];
    return expert >= 0 && expert < job_.placement.experts;
  }

  std::string Describe(int64_t token, int64_t slot) const {
    return Place("rank", rank_) + ", " + Place("token", token) + ", " + Place("slot", slot);
  }

  [[noreturn]] void Fail(const std::string& text) const { FailTogether(group_, text); }

  // ---- rows --------------------------------------------------------------------------------------------------------

  /// The rows of the tokens [begin, end) of every rank.
  void Round(int64_t begin, int64_t end) {
    const int64_t wire = WireBytes(job_), slots = Slots(job_);
    const auto piece = [](std::byte* from, std::byte* to) {
      return from == to ? Region{} : Region{from, static_cast<size_t>(to - from)};
    };
    const auto address_of = [&](const Incoming& row) -> const std::byte*& {
      return rows_[static_cast<size_t>((row.token - begin) * slots + row.slot)];
    };
    const auto own = static_cast<size_t>(rank_);
    std::vector<Region> inputs(world_), outputs(world_);
    std::fill(rows_.begin(), rows_.end(), nullptr);
    std::byte* room = receive_;
    for (size_t peer = 0; peer < world_; ++peer) {
      if (peer == own) continue;
      std::byte* const first = room;
      const std::vector<Incoming>& rows = incoming_[peer];
      for (size_t& next = received_[peer]; next < rows.size() && rows[next].token < end; ++next, room += wire) {
        address_of(rows[next]) = room;
      }
      outputs[peer] = piece(first, room);
    }
    for (size_t& next = sent_[own]; next < sources_[own].size() && sources_[own][next].token < end; ++next) {
      const std::byte*& address = address_of(incoming_[own][next]);
      address = RowOf(sources_[own][next]);
      if (!job_.int8_transit) continue;
      Pack(address, room);
      address = room;
      room += wire;
    }
    room = send_;
    for (size_t peer = 0; peer < world_; ++peer) {
      if (peer == own) continue;
      std::byte* const first = room;
      const std::vector<Outgoing>& rows = sources_[peer];
      for (size_t& next = sent_[peer]; next < rows.size() && rows[next].token < end; ++next, room += wire) {
        if (room == send_ + SendBytes(job_)) Fail(Place("rank", rank_) + " has more rows than there are slots");
        Pack(RowOf(rows[next]), room);
      }
      inputs[peer] = piece(first, room);
    }
    group_.AllToAll(ElementType::kUInt8, inputs, outputs);
    for (int64_t token = begin; token < std::min(end, job_.tokens); ++token) {
      Sum(token, rows_.data() + (token - begin) * slots);
    }
  }

  const std::byte* RowOf(const Outgoing& source) const { return job_.expand_x + source.row * RowBytes(job_); }

  void Pack(const std::byte* row, std::byte* to) const {
    if (!job_.int8_transit) {
      std::memcpy(to, row, static_cast<size_t>(RowBytes(job_)));
      return;
    }
    MoeRows().pack(row, job_.in, job_.columns, reinterpret_cast<int8_t*>(to), to + ScaleOffset(job_));
  }

  /// The row as its token's rank sees it.
  const void* Unpack(const std::byte* row, size_t index) {
    if (!job_.int8_transit) return row;
    const size_t bytes = Aligned(static_cast<size_t>(RowBytes(job_)));
    unpacked_.resize(static_cast<size_t>(Slots(job_)) * bytes);
    std::byte* to = unpacked_.data() + index * bytes;
    MoeRows().unpack(reinterpret_cast<const int8_t*>(row), row + ScaleOffset(job_), job_.in, job_.columns, to);
    return to;
  }

  void Sum(int64_t token, const std::byte* const* rows) {
    terms_.clear();
    if (choices_.IsActive(token)) {
      for (int64_t slot = 0; slot < job_.slots; ++slot) AddSlot(token, slot, rows[slot]);
      for (int64_t slot = job_.slots; slot < Slots(job_); ++slot) {
        terms_.push_back({Unpack(rows[slot], static_cast<size_t>(slot)), 1.0f, job_.in});
      }
      if (job_.shared_expert_x != nullptr) terms_.push_back({Token(job_.shared_expert_x, token), 1.0f, job_.out});
    }
    std::byte* output = job_.output + token * OutputBytes();
    const auto count = static_cast<int64_t>(terms_.size());
    if (!job_.norm.is_wanted) {
      MoeRows().weighted_sum(terms_.data(), count, job_.columns, output, job_.out);
      return;
    }
    sum_.resize(static_cast<size_t>(job_.columns));
    MoeRows().weighted_sum(terms_.data(), count, job_.columns, sum_.data(), NPU_FLOAT32);
    const MoeNorm norm{sum_.data(),
                       Token(job_.norm.residual, token),
                       job_.norm.gamma,
                       output,
                       job_.norm.y + token * OutputBytes(),
                       job_.out,
                       job_.columns,
                       job_.norm.epsilon};
    job_.norm.rstd[token] = MoeRows().add_rms_norm(&norm);
  }

  void AddSlot(int64_t token, int64_t slot, const std::byte* row) {
    const int64_t index = token * job_.slots + slot;
    const float weight = job_.expert_scales[index];
    int64_t expert = ids_[static_cast<size_t>(index)];
    if (expert < 0) return;
    if (expert < job_.placement.experts) {
      terms_.push_back({Unpack(row, static_cast<size_t>(slot)), weight, job_.in});
      return;
    }
    expert -= job_.placement.experts + job_.zero_experts;
    if (expert < 0) return;
    if (expert < job_.copy_experts) {
      terms_.push_back({Token(job_.ori_x, token), weight, job_.out});
      return;
    }
    expert -= job_.copy_experts;
    gated_.resize(static_cast<size_t>(job_.slots * job_.columns));
    float* value = gated_.data() + slot * job_.columns;
    MoeRows().gated(Token(job_.ori_x, token), Token(job_.alpha1, expert), Token(job_.alpha2, expert),
                    Token(job_.const_v, expert), job_.out, job_.columns, value);
    terms_.push_back({value, weight, NPU_FLOAT32});
  }

  int64_t OutputBytes() const { return job_.columns * npu_dtype_size(job_.out); }
  const std::byte* Token(const std::byte* base, int64_t token) const { return base + token * OutputBytes(); }

  const MoeCombine& job_;
  Collectives& group_;
  const int rank_;
  const size_t world_;
  std::vector<int32_t> ids_;
  MoeChoices choices_;
  std::vector<MoePeer> peers_;
  int64_t most_ = 0;                         ///< tokens of any rank
  std::vector<std::vector<Entry>> entries_;  ///< by peer: what this rank tells
  std::vector<std::vector<Entry>> trade_;    ///< by peer: what it hears
  std::vector<std::vector<Outgoing>> sources_;
  std::vector<std::vector<Incoming>> incoming_;
  std::vector<size_t> sent_, received_;
  std::vector<const std::byte*> rows_;  ///< of the tokens of a round, by token and slot
  std::vector<MoeTerm> terms_;
  std::vector<std::byte> unpacked_;
  std::vector<float> gated_, sum_;
  std::byte* told_ = nullptr;
  std::byte* heard_ = nullptr;
  std::byte* send_ = nullptr;
  std::byte* receive_ = nullptr;
};

size_t MoeCombine::scratch_bytes() const {
  return MoeAnnounceScratch(placement.world, Call::LongestBody(*this)) + Call::EntryBytes(Call::MostTold(*this)) +
         Call::EntryBytes(Call::MostHeard(*this)) + Aligned(Call::SendBytes(*this)) + Call::ReceiveBytes(*this);
}

void MoeCombine::Run(Collectives& group) const { Call(*this, group).Run(); }

}  // namespace npu::distributed
