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
                           "sizes and types";
  transport.Abort(text.c_str());
  throw CommError(NPU_ERROR_TASK_FAILED, text);
}

void RequireSameCall(Transport& transport, bool same_count) {
  const Call& first = transport.CallOf(0);
  for (int peer = 1; peer < transport.size(); ++peer) {
    const Call& other = transport.CallOf(peer);
    if (other.kind != first.kind || other.element != first.element || other.reduce != first.reduce ||
        other.root != first.root || (same_count && other.count != first.count)) {
      FailMismatch(transport, 0, peer);
    }
  }
}

void RequireSameSize(Transport& transport, int from, size_t sent, int to, size_t room) {
  if (sent == room) return;
  const ElementType element = transport.CallOf(from).element;
  FailMismatch(transport, from, to,
               ": rank " + std::to_string(from) + " sends " + DescribeBytes(sent, element) + " to rank " +
                   std::to_string(to) + ", which expects " + DescribeBytes(room, element));
}

}  // namespace npu::distributed
