#include "transport/call.h"

namespace npu::distributed {
namespace {

std::string NameOrNumber(ElementType element) {
  const auto number = static_cast<size_t>(element);
  return number < kElementTypeCount ? Name(element) : "type " + std::to_string(number);
}

std::string NameOrNumber(ReduceKind kind) {
  const auto number = static_cast<size_t>(kind);
  return number < kReduceKindCount ? Name(kind) : "reduction " + std::to_string(number);
}

}  // namespace

Call OperatorCall(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a: the same in every process
  for (const char byte : text) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3;
  Call call;
  call.kind = CallKind::kOperator;
  call.count = hash;
  return call;
}

const char* Name(CallKind kind) {
  switch (kind) {
    case CallKind::kAllReduce:
      return "all_reduce";
    case CallKind::kBroadcast:
      return "broadcast";
    case CallKind::kReduce:
      return "reduce";
    case CallKind::kAllGather:
      return "all_gather";
    case CallKind::kReduceScatter:
      return "reduce_scatter";
    case CallKind::kAllToAll:
      return "all_to_all";
    case CallKind::kScatter:
      return "scatter";
    case CallKind::kGather:
      return "gather";
    case CallKind::kBarrier:
      return "barrier";
    case CallKind::kOperator:
      return "the start of a fused operator";
  }
  return "unknown";
}

const char* LayoutName(LayoutSet layouts) {
  if ((layouts & kContiguous) != 0) return "contiguous";
  return (layouts & kChannelsLast) != 0 ? "channels_last" : "channels_last_3d";
}

bool SameCall(const Call& one, const Call& other) {
  return one.kind == other.kind && one.element == other.element && one.reduce == other.reduce && one.root == other.root;
}

std::string Describe(const Call& call) {
  std::string text = Name(call.kind);
  if (call.kind == CallKind::kBarrier || call.kind == CallKind::kOperator) return text;
  text += '(' + std::to_string(call.count) + " x " + NameOrNumber(call.element);
  if (call.kind == CallKind::kAllReduce || call.kind == CallKind::kReduce || call.kind == CallKind::kReduceScatter) {
    text += ", op=" + NameOrNumber(call.reduce);
  }
  if (call.root >= 0) text += ", root=" + std::to_string(call.root);
  if ((call.layouts & kContiguous) == 0) text += std::string(", ") + LayoutName(call.layouts);
  return text + ')';
}

std::string DescribeBytes(uint64_t bytes, ElementType element) {
  const bool known = static_cast<size_t>(element) < kElementTypeCount;
  if (!known || bytes % SizeOf(element) != 0) return std::to_string(bytes) + " bytes of " + NameOrNumber(element);
  return std::to_string(bytes / SizeOf(element)) + " x " + Name(element);
}

std::string DescribeSide(const Extent& side, ElementType element, const Extent& other) {
  const std::string text = DescribeBytes(side.bytes, element);
  return SameLayout(side.layouts, other.layouts) ? text : text + " (" + LayoutName(side.layouts) + ")";
}

std::string DescribeMessageMismatch(uint64_t number, int from, const Extent& sent, ElementType sent_element, int to,
                                    const Extent& expected, ElementType expected_element) {
  const std::string sender = "rank " + std::to_string(from);
  const std::string receiver = "rank " + std::to_string(to);
  return "EI0005: hccl: send and receive differ: message number " + std::to_string(number) + " from " + sender +
         " to " + receiver + ": " + sender + " sends " + DescribeSide(sent, sent_element, expected) + ", " + receiver +
         " receives " + DescribeSide(expected, expected_element, sent) +
         ". Messages of two ranks match in the order of their calls";
}

}  // namespace npu::distributed
