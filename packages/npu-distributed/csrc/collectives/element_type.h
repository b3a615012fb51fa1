// Element types and reductions, as numbers that cross process borders.
#pragma once

#include <cstddef>
#include <cstdint>

namespace npu::distributed {

enum class ElementType : uint32_t {
  kInt8,
  kUInt8,
  kInt16,
  kUInt16,
  kInt32,
  kUInt32,
  kInt64,
  kUInt64,
  kFloat16,
  kBFloat16,
  kFloat32,
  kFloat64,
  kBool,
  kFloat8E4M3,
  kFloat8E5M2,
};
inline constexpr size_t kElementTypeCount = 15;

enum class ReduceKind : uint32_t { kSum, kAverage, kProduct, kMin, kMax, kPremulSum };
inline constexpr size_t kReduceKindCount = 6;

size_t SizeOf(ElementType type);
const char* Name(ElementType type);
const char* Name(ReduceKind kind);

}  // namespace npu::distributed
