#include "collectives/matching.h"

#include "transport/comm_error.h"

namespace npu::distributed {

void FailMismatch(Transport& transport, int one, int other, const std::string& detail) {
  const auto signature = [&](int rank) {
    const Call& call = transport.CallOf(rank);
    std::string text = Describe(call);
    if (call.kind == CallKind::kOperator) {
      const std::span<const std::byte> said = transport.PayloadOf(rank);
      text.assign(reinterpret_cast<const char*>(said.data()), said.size());
    }
    return "rank " + std::to_string(rank) + " " + text;
  };
  const std::string text = "EI0005: hccl: ranks called different collectives: call number " +
                           std::to_string(transport.call_number()) + ": " + signature(one) + ", " + signature(other) +
                           detail +
                           ". Every rank of a group must issue the same collectives in the same order with matching "
                           "sizes, types and memory formats";
  transport.Abort(text.c_str());
  throw CommError(NPU_ERROR_TASK_FAILED, text);
}

void RequireSameCall(Transport& transport, bool same_data) {
  const Call& first = transport.CallOf(0);
  for (int peer = 1; peer < transport.size(); ++peer) {
    const Call& other = transport.CallOf(peer);
    if (!SameCall(first, other) || (same_data && other.count != first.count)) FailMismatch(transport, 0, peer);
  }
  if (!same_data) return;
  RequireCommonLayout(
      transport.size(), [&](int rank) { return transport.CallOf(rank).layouts; },
      [&](int one, int other) { FailMismatch(transport, one, other); });
}

std::string DescribeMisfit(int from, const Extent& sent, int to, const Extent& room, ElementType element) {
  return ": rank " + std::to_string(from) + " sends " + DescribeSide(sent, element, room) + " to rank " +
         std::to_string(to) + ", which expects " + DescribeSide(room, element, sent);
}

void RequireFit(Transport& transport, int from, const Extent& sent, int to, const Extent& room) {
  if (Fits(sent, room)) return;
  FailMismatch(transport, from, to, DescribeMisfit(from, sent, to, room, transport.CallOf(from).element));
}

}  // namespace npu::distributed
