// Do the calls that the ranks announced fit together?  Everything here looks at announcements alone, so all ranks come
// to the same verdict, and nobody touches memory before it.
#pragma once

#include <string>

#include "transport/transport.h"

namespace npu::distributed {

/// Fails the group with EI0005, naming the calls of both ranks.
[[noreturn]] void FailMismatch(Transport& transport, int one, int other, const std::string& detail = "");

/// Kind, type, reduction and root must be equal; with `same_data` the number of elements and a layout too.
void RequireSameCall(Transport& transport, bool same_data);

/// What `from` sends to `to` and what `to` has room for must be the same.
void RequireFit(Transport& transport, int from, const Extent& sent, int to, const Extent& room);

/// ": rank 0 sends 4 x float32 to rank 1, which expects 5 x float32".
std::string DescribeMisfit(int from, const Extent& sent, int to, const Extent& room, ElementType element);

/// Calls `fail(one, other)` with two ranks when what `layouts_of` says of `ranks` ranks has no layout in common.
template <class LayoutsOf, class FailFunction>
void RequireCommonLayout(int ranks, LayoutsOf layouts_of, FailFunction fail) {
  LayoutSet common = kAnyLayout;
  int narrowed_by = 0;  // the last rank that took a layout away
  for (int rank = 0; rank < ranks; ++rank) {
    const LayoutSet left = common & layouts_of(rank);
    if (left == 0) fail(narrowed_by, rank);
    if (left != common) narrowed_by = rank;
    common = left;
  }
}

}  // namespace npu::distributed
