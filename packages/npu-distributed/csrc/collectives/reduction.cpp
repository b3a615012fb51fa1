#include "collectives/reduction.h"

#include <optional>

#include "npu/kernels/isa.h"

extern "C" {
const npu_reduce_table* npu_reduce_table_base();
#if defined(__x86_64__)
const npu_reduce_table* npu_reduce_table_avx2();
const npu_reduce_table* npu_reduce_table_avx512();
#endif
}

namespace npu::distributed {
namespace {

using kernels::KernelTables;

const KernelTables<npu_reduce_table>& Tables() {
#if defined(__x86_64__)
  static const KernelTables<npu_reduce_table> tables = {
      {npu_reduce_table_base(), npu_reduce_table_avx2(), npu_reduce_table_avx512()}};
#else
  static const KernelTables<npu_reduce_table> tables = {{npu_reduce_table_base()}};
#endif
  return tables;
}

/// Tables this CPU can run, best first.
std::vector<const npu_reduce_table*> UsableTables() {
  std::vector<const npu_reduce_table*> usable;
  for (int isa = static_cast<int>(kernels::cpu_isa()); isa >= 0; --isa) {
    if (const npu_reduce_table* table = Tables().by_isa[isa]; table != nullptr) usable.push_back(table);
  }
  return usable;
}

struct Place {
  size_t row;
  size_t column;
};

/// Where a reduction stands in the tables; nothing when there is none.
std::optional<Place> PlaceOf(ElementType type, ReduceKind kind) {
  if (type == ElementType::kBool) {
    // Bytes 0 and 1: any sum that is not zero is true, a product or an average of ones only is true.
    type = ElementType::kUInt8;
    switch (kind) {
      case ReduceKind::kSum:
      case ReduceKind::kMax:
        kind = ReduceKind::kMax;
        break;
      case ReduceKind::kProduct:
      case ReduceKind::kAverage:
      case ReduceKind::kMin:
        kind = ReduceKind::kMin;
        break;
      case ReduceKind::kPremulSum:
        return std::nullopt;
    }
  }
  const auto row = static_cast<size_t>(type);
  const auto column = static_cast<size_t>(kind);
  if (row >= NPU_REDUCE_TYPES || column >= NPU_REDUCE_KINDS) return std::nullopt;
  return Place{row, column};
}

npu_reduce_fn Lookup(const npu_reduce_table& table, ElementType type, ReduceKind kind) {
  const std::optional<Place> place = PlaceOf(type, kind);
  return place ? table.entry[place->row][place->column] : nullptr;
}

TwoStepReduction LookupTwoSteps(const npu_reduce_table& table, ElementType type, ReduceKind kind) {
  const std::optional<Place> place = PlaceOf(type, kind);
  if (!place) return {};
  return {table.partial[place->row][place->column], table.finish[place->row][place->column],
          table.partial_bytes[place->row][place->column]};
}

}  // namespace

npu_reduce_fn FindReduction(ElementType type, ReduceKind kind) { return Lookup(Tables().active(), type, kind); }

npu_reduce_fn FindReduction(ElementType type, ReduceKind kind, const std::string& isa) {
  for (const npu_reduce_table* table : UsableTables()) {
    if (isa == table->isa) return Lookup(*table, type, kind);
  }
  return nullptr;
}

TwoStepReduction FindTwoStepReduction(ElementType type, ReduceKind kind) {
  return LookupTwoSteps(Tables().active(), type, kind);
}

TwoStepReduction FindTwoStepReduction(ElementType type, ReduceKind kind, const std::string& isa) {
  for (const npu_reduce_table* table : UsableTables()) {
    if (isa == table->isa) return LookupTwoSteps(*table, type, kind);
  }
  return {};
}

std::vector<std::string> AvailableIsas() {
  std::vector<std::string> names;
  for (const npu_reduce_table* table : UsableTables()) names.emplace_back(table->isa);
  return names;
}

}  // namespace npu::distributed
