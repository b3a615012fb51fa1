#pragma once
#include <c10/core/Storage.h>

#include <string>
#include <string_view>

#include "export.h"

namespace npu {

// Storages that several processes use at once, without a copy.
//
// The sender keeps the memory of a storage it has sent, whatever happens to the storage, until every receiver is done:
// a message carries one reference to it, held in a cell of a page that sender and receivers map.  A receiver gives its
// reference back once the work it has queued on the memory is done; the reference of a receiver that has died is taken
// back when the sender next looks (when it sends, frees, collects, or runs out of memory).  A message that nobody ever
// receives keeps its memory until the sender ends.

// A message for exactly one receiver: a process of the same user on this machine.  The receiver's work waits for what
// this process has queued on the memory so far, on the calling thread's current stream, on the stream that allocated
// it and on streams that record_stream() named.  Throws for a storage whose memory cannot be shared.
NPU_RUNTIME_API std::string export_storage(const c10::Storage& storage);

// The storage a message names; the one that is here already if this process has it.  Later work of the current stream
// of its device waits for the sender's work.  Cannot be resized.  Throws for a message that was received before, and
// when the owner of the memory has ended.
NPU_RUNTIME_API c10::Storage import_storage(std::string_view message);

// Takes back what receivers are done with and lets go of memory that was waiting for it.
NPU_RUNTIME_API void ipc_collect() noexcept;

}  // namespace npu
