#include "mc2/moe_exchange.h"

#include <algorithm>
#include <cstring>

#include "mc2/fail_together.h"

namespace npu::distributed {
namespace {

// Everything fits here when few tokens are decoded: one meeting instead of two.
constexpr size_t kFirstBytes = 4096;

struct Header {
  static constexpr size_t kAgreed = 24;
  char failure[400];
  int64_t agreed[kAgreed];
  int64_t tokens;
  int64_t longest;
  uint64_t body_bytes;
};
constexpr size_t kInline = kFirstBytes - sizeof(Header);
static_assert(sizeof(Header) < kFirstBytes);

size_t Aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

template <size_t N>
void CopyText(char (&to)[N], const std::string& text) {
  const size_t length = std::min(text.size(), N - 1);
  std::memcpy(to, text.data(), length);
  to[length] = '\0';
}

/// Every rank compares the same headers in the same order, so all of them find the same reason.
void RequireAgreement(Collectives& group, const MoeAnnouncement& mine, std::span<const std::byte> first) {
  const auto header_of = [&](int rank) {
    Header header;
    std::memcpy(&header, first.data() + static_cast<size_t>(rank) * kFirstBytes, sizeof header);
    return header;
  };
  const Header root = header_of(0);
  for (int rank = 1; rank < group.size(); ++rank) {
    const Header other = header_of(rank);
    const std::string who = "rank " + std::to_string(rank);
    for (size_t i = 0; i < mine.agreed.size(); ++i) {
      if (root.agreed[i] == other.agreed[i]) continue;
      FailTogether(group, "EI0005: hccl: call number " + std::to_string(group.call_number()) + ": argument " +
                              mine.agreed[i].first + ": expected the same on all ranks, got " +
                              std::to_string(root.agreed[i]) + " on rank 0 and " + std::to_string(other.agreed[i]) +
                              " on " + who);
    }
  }
  for (int rank = 0; rank < group.size(); ++rank) {
    const Header header = header_of(rank);
    if (header.failure[0] != '\0') FailTogether(group, "rank " + std::to_string(rank) + ": " + header.failure);
  }
}

}  // namespace

size_t MoeAnnounceScratch(int world, size_t longest_body) {
  const size_t ranks = static_cast<size_t>(world) + 1;  // and what this rank sends
  return ranks * (kFirstBytes + (longest_body > kInline ? Aligned(longest_body) : 0));
}

std::vector<MoePeer> MoeAnnounce(Collectives& group, const MoeAnnouncement& mine, size_t longest_body,
                                 std::byte* scratch) {
  const auto size = static_cast<size_t>(group.size());
  std::byte* sent = scratch;
  std::byte* received = scratch + kFirstBytes;
  Header header{};
  CopyText(header.failure, mine.failure);
  for (size_t i = 0; i < mine.agreed.size() && i < Header::kAgreed; ++i) header.agreed[i] = mine.agreed[i].second;
  header.tokens = mine.tokens;
  header.longest = mine.longest;
  header.body_bytes = mine.failure.empty() ? mine.body.size() : 0;
  std::memset(sent, 0, kFirstBytes);
  std::memcpy(sent, &header, sizeof header);
  if (header.body_bytes <= kInline && header.body_bytes != 0) {
    std::memcpy(sent + sizeof header, mine.body.data(), header.body_bytes);
  }
  std::vector<Region> outputs(size);
  for (size_t rank = 0; rank < size; ++rank) outputs[rank] = {received + rank * kFirstBytes, kFirstBytes};
  group.AllGather(ElementType::kUInt8, {sent, kFirstBytes}, outputs);
  RequireAgreement(group, mine, {received, size * kFirstBytes});

  std::vector<MoePeer> peers(size);
  std::vector<size_t> lengths(size);
  bool all_inline = true;
  for (size_t rank = 0; rank < size; ++rank) {
    const std::byte* from = received + rank * kFirstBytes;
    std::memcpy(&header, from, sizeof header);
    if (header.body_bytes > longest_body) {
      FailTogether(group, "rank " + std::to_string(rank) + " announces " + std::to_string(header.body_bytes) +
                              " bytes, but its arguments allow " + std::to_string(longest_body));
    }
    peers[rank] = {header.tokens, header.longest, {from + sizeof header, header.body_bytes}};
    lengths[rank] = header.body_bytes;
    all_inline = all_inline && header.body_bytes <= kInline;
  }
  if (all_inline) return peers;

  // Bodies that do not fit follow; the others have arrived.
  const size_t stride = Aligned(longest_body);
  sent = scratch + (size + 1) * kFirstBytes;
  received = sent + stride;
  const auto region = [&](std::byte* base, size_t bytes) { return bytes > kInline ? Region{base, bytes} : Region{}; };
  for (size_t rank = 0; rank < size; ++rank) {
    outputs[rank] = region(received + rank * stride, lengths[rank]);
    if (lengths[rank] > kInline) peers[rank].body = {received + rank * stride, lengths[rank]};
  }
  if (mine.body.size() > kInline) std::memcpy(sent, mine.body.data(), mine.body.size());
  group.AllGather(ElementType::kUInt8, region(sent, mine.body.size()), outputs);
  return peers;
}

}  // namespace npu::distributed
