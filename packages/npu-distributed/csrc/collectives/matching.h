// Do the calls that the ranks announced fit together?  Everything here looks at announcements alone, so all ranks come
// to the same verdict, and nobody touches memory before it.
#pragma once

#include <string>

#include "transport/transport.h"

namespace npu::distributed {

/// Fails the group with EI0005, naming the calls of both ranks.
[[noreturn]] void FailMismatch(Transport& transport, int one, int other, const std::string& detail = "");

/// Kind, type, reduction and root must be equal, with `same_count` the number of elements too.
void RequireSameCall(Transport& transport, bool same_count);

/// What `from` sends to `to` and what `to` has room for must be the same.
void RequireSameSize(Transport& transport, int from, size_t sent, int to, size_t room);

}  // namespace npu::distributed
