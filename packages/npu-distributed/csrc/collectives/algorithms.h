// Collectives over pieces and peers.  Written against Transport: nothing here knows how bytes travel.
//
// Results are deterministic: operands are combined in rank order, whichever rank computes a piece.
// Every function throws CommError (also when ranks announce calls that do not fit together).
#pragma once

#include <span>

#include "transport/transport.h"

namespace npu::distributed {

/// data = reduction over all ranks of data.
void AllReduce(Transport& transport, ElementType type, ReduceKind kind, double factor, Region data);

/// data of every rank = data of `root`.
void Broadcast(Transport& transport, ElementType type, int root, Region data);

/// outputs[r] = input of rank r.  Sizes may differ between ranks.
void AllGather(Transport& transport, ElementType type, Region input, std::span<const Region> outputs);

/// On `root`: data = reduction over all ranks; data of the other ranks stays as it is.
void Reduce(Transport& transport, ElementType type, ReduceKind kind, double factor, int root, Region data);

/// output = reduction over ranks q of inputs[own rank] of rank q.
void ReduceScatter(Transport& transport, ElementType type, ReduceKind kind, double factor,
                   std::span<const Region> inputs, Region output);

/// outputs[q] = inputs[own rank] of rank q.
void AllToAll(Transport& transport, ElementType type, std::span<const Region> inputs, std::span<const Region> outputs);

/// output = inputs[own rank] of `root`.  `inputs` is empty on the other ranks.
void Scatter(Transport& transport, ElementType type, int root, std::span<const Region> inputs, Region output);

/// On `root`: outputs[q] = input of rank q.  `outputs` is empty on the other ranks.
void Gather(Transport& transport, ElementType type, int root, Region input, std::span<const Region> outputs);

/// Waits for everybody.
void Barrier(Transport& transport);
void Agree(Transport& transport, std::string_view operation);

}  // namespace npu::distributed
