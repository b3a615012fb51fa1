// How the ranks of one group meet and reach each other's memory.
//
// Algorithms (csrc/collectives) are written against this interface and never learn which transport carries them.  A
// collective is: Meet, move bytes, and either Part (peers used my memory) or nothing (only inline payloads were read).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "transport/call.h"

namespace npu::distributed {

/// A stretch of this rank's device memory that peers may address during the call.
struct Region {
  void* address = nullptr;
  size_t bytes = 0;
  LayoutSet layouts = kAnyLayout;

  Extent extent() const { return {bytes, layouts}; }
};

/// One message between this rank and `peer`.  Messages of one ordered pair of ranks match in the order of their calls.
struct Transfer {
  bool is_send = false;
  int peer = 0;
  ElementType element = ElementType::kUInt8;
  Region data;
};

/// One group of ranks.  All calls come from one thread at a time except Abort, which any thread may call.
/// Every function that waits throws CommError when a peer died, the group failed, was aborted or timed out.
class Transport {
 public:
  virtual ~Transport() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// Largest payload Meet can carry.
  virtual size_t inline_capacity() const = 0;
  /// Most regions one call can announce.
  virtual size_t region_capacity() const = 0;

  /// Announces `call`, the payload and the regions, and waits until every rank has announced its own.  Beside a payload
  /// the regions tell their extents only: peers cannot address them.
  virtual void Meet(const Call& call, std::span<const std::byte> payload, std::span<const Region> regions) = 0;

  /// How many times Meet was called: the same number on every rank.
  virtual uint64_t call_number() const = 0;

  /// What `rank` announced at the last Meet; valid until the next one.
  virtual const Call& CallOf(int rank) const = 0;
  virtual std::span<const std::byte> PayloadOf(int rank) const = 0;
  /// Size and layouts of region `index` of `rank`; nothing when it announced none.
  virtual Extent ExtentOf(int rank, size_t index) const = 0;
  size_t RegionBytes(int rank, size_t index) const { return ExtentOf(rank, index).bytes; }
  /// Region `index` of `rank`, addressable here; its own region for the own rank.  Empty when it was announced so.
  virtual std::span<std::byte> RegionOf(int rank, size_t index) = 0;

  /// Takes the next unclaimed piece of `owner`'s share of this call; false when all `pieces` are taken.  Every piece
  /// goes to exactly one rank.
  virtual bool ClaimPiece(int owner, uint32_t pieces, uint32_t* piece) = 0;

  /// Waits until every rank has come here: afterwards no peer touches this rank's regions.
  virtual void Part() = 0;

  /// Makes this and every later call fail on every rank with `reason`.  Thread-safe, idempotent.
  virtual void Abort(const char* reason) noexcept = 0;
  /// Tells peers that this rank will not come again.  Idempotent.
  virtual void Leave() noexcept = 0;
};

}  // namespace npu::distributed
