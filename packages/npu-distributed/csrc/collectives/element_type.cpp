#include "collectives/element_type.h"

#include <array>

namespace npu::distributed {
namespace {

struct TypeFacts {
  const char* name;
  size_t size;
};

constexpr std::array<TypeFacts, kElementTypeCount> kTypes = {{
    {"int8", 1},
    {"uint8", 1},
    {"int16", 2},
    {"uint16", 2},
    {"int32", 4},
    {"uint32", 4},
    {"int64", 8},
    {"uint64", 8},
    {"float16", 2},
    {"bfloat16", 2},
    {"float32", 4},
    {"float64", 8},
    {"bool", 1},
    {"float8_e4m3fn", 1},
    {"float8_e5m2", 1},
}};

constexpr std::array<const char*, kReduceKindCount> kReductions = {"SUM", "AVG", "PRODUCT", "MIN", "MAX", "PREMUL_SUM"};

}  // namespace

size_t SizeOf(ElementType type) { return kTypes.at(static_cast<size_t>(type)).size; }
const char* Name(ElementType type) { return kTypes.at(static_cast<size_t>(type)).name; }
const char* Name(ReduceKind kind) { return kReductions.at(static_cast<size_t>(kind)); }

}  // namespace npu::distributed
