// What a rank announces before it does something together with others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "collectives/element_type.h"
#include "transport/extent.h"

namespace npu::distributed {

enum class CallKind : uint32_t {
  kAllReduce,
  kBroadcast,
  kReduce,
  kAllGather,
  kReduceScatter,
  kAllToAll,
  kScatter,
  kGather,
  kBarrier,
  kOperator,  ///< the start of a fused operator
};

/// Every rank announces one, so that a mismatch is an error instead of wrong numbers.
struct Call {
  CallKind kind = CallKind::kBarrier;
  ElementType element = ElementType::kUInt8;
  ReduceKind reduce = ReduceKind::kSum;
  int32_t root = -1;
  uint64_t count = 0;              ///< elements this rank contributes
  double factor = 1.0;             ///< ReduceKind::kPremulSum: scale of this rank's contribution
  LayoutSet layouts = kAnyLayout;  ///< of the one region that this rank's `count` tells of, where it has one
};

/// How much of the text of an operator travels.
inline constexpr size_t kOperationBytes = 256;

/// The call that starts the operator `text`, which travels beside it: `count` is a hash of the text.
Call OperatorCall(std::string_view text);

const char* Name(CallKind kind);

/// "all_reduce(16 x float32, op=SUM)".  Takes any bits: a call may come from a process that went wild.
std::string Describe(const Call& call);

/// Whether the announced calls fit together, sizes apart.
bool SameCall(const Call& one, const Call& other);

/// "16 x float32", or bytes when they are no whole elements.
std::string DescribeBytes(uint64_t bytes, ElementType element);

/// The same of one side of a transfer; with its layout when this is what keeps it from fitting the other side.
std::string DescribeSide(const Extent& side, ElementType element, const Extent& other);

/// EI0005: what rank `from` sends as message `number` is not what rank `to` receives.
std::string DescribeMessageMismatch(uint64_t number, int from, const Extent& sent, ElementType sent_element, int to,
                                    const Extent& expected, ElementType expected_element);

}  // namespace npu::distributed
