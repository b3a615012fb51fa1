// What the ranks of one group can do together, whatever carries the bytes.
//
// A process group and the fused operators are written against this interface; which implementation they get depends on
// where the ranks live (see connect.h).
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "transport/transport.h"

namespace npu::distributed {

/// All regions are device memory of this process.  Calls come from one thread at a time, except Abort, which any thread
/// may call, and Exchange, which may run beside one other call.  Functions that wait throw CommError when a peer died,
/// the group failed, was aborted or timed out, and when ranks announce calls that do not fit together.
///
/// Results are deterministic: operands are combined in rank order, whichever rank computes a piece.
class Collectives {
 public:
  virtual ~Collectives() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// The same number on all ranks, another one for every other group of the job.
  virtual uint64_t identity() const = 0;

  /// data = reduction over all ranks of data.
  virtual void AllReduce(ElementType type, ReduceKind kind, double factor, Region data) = 0;
  /// data of every rank = data of `root`.
  virtual void Broadcast(ElementType type, int root, Region data) = 0;
  /// outputs[r] = input of rank r.  Sizes may differ between ranks.
  virtual void AllGather(ElementType type, Region input, std::span<const Region> outputs) = 0;
  /// On `root`: data = reduction over all ranks; data of the other ranks stays as it is.
  virtual void Reduce(ElementType type, ReduceKind kind, double factor, int root, Region data) = 0;
  /// output = reduction over ranks q of inputs[own rank] of rank q.
  virtual void ReduceScatter(ElementType type, ReduceKind kind, double factor, std::span<const Region> inputs,
                             Region output) = 0;
  /// outputs[q] = inputs[own rank] of rank q.
  virtual void AllToAll(ElementType type, std::span<const Region> inputs, std::span<const Region> outputs) = 0;
  /// output = inputs[own rank] of `root`.  `inputs` is empty on the other ranks.
  virtual void Scatter(ElementType type, int root, std::span<const Region> inputs, Region output) = 0;
  /// On `root`: outputs[q] = input of rank q.  `outputs` is empty on the other ranks.
  virtual void Gather(ElementType type, int root, Region input, std::span<const Region> outputs) = 0;
  /// Waits for everybody.
  virtual void Barrier() = 0;
  /// Waits for everybody; `operation` must be the same on all ranks.  The first step of an operator that makes several
  /// calls: it tells who is about to do what, in errors of ranks that do something else, too.
  virtual void Agree(std::string_view operation) = 0;
  /// Carries out all transfers, in whatever order the peers come.  Only the ranks named take part.
  virtual void Exchange(std::span<const Transfer> transfers) = 0;

  /// How many calls there have been, Exchange not counted.
  virtual uint64_t call_number() const = 0;

  /// Makes this and every later call fail on every rank with `reason`.  Thread-safe, idempotent.
  virtual void Abort(const char* reason) noexcept = 0;
  /// Tells peers that this rank will not come again.  Idempotent.
  virtual void Leave() noexcept = 0;
};

}  // namespace npu::distributed
