#include "collectives/algorithms.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "collectives/reduction.h"
#include "transport/comm_error.h"

namespace npu::distributed {
namespace {

// Shares are cut into pieces that any idle rank may take: with as many ranks as cores one of them is often descheduled
// in the middle.  Large enough that claiming is free, small enough that the last piece is not waited for long.
constexpr size_t kPieceBytes = 512 * 1024;

[[noreturn]] void FailMismatch(Transport& transport, int peer, const std::string& detail) {
  const std::string text = "EI0005: hccl: ranks called different collectives: rank " +
                           std::to_string(transport.rank()) + " " + Describe(transport.CallOf(transport.rank())) +
                           ", rank " + std::to_string(peer) + " " + Describe(transport.CallOf(peer)) + detail +
                           ". Every rank of a group must issue the same collectives in the same order with matching "
                           "sizes and types";
  transport.Abort(text.c_str());
  throw CommError(NPU_ERROR_TASK_FAILED, text);
}

/// Every rank compares the same announcements, so all of them fail together or none does.
void RequireSameCall(Transport& transport, bool same_count) {
  const Call& mine = transport.CallOf(transport.rank());
  for (int peer = 0; peer < transport.size(); ++peer) {
    const Call& other = transport.CallOf(peer);
    if (other.kind != mine.kind || other.element != mine.element || other.reduce != mine.reduce ||
        other.root != mine.root || (same_count && other.count != mine.count)) {
      FailMismatch(transport, peer, "");
    }
  }
}

/// The stretch of a buffer of `count` elements that `rank` is responsible for.
struct Share {
  size_t begin;
  size_t count;
};

Share ShareOf(int rank, int size, size_t count, size_t element_bytes) {
  // Shares begin on cache lines, so that two ranks never write the same one.
  const size_t unit = std::max<size_t>(1, 64 / element_bytes);
  const size_t units = (count + unit - 1) / unit;
  const auto at = [&](int r) {
    return std::min(count, units * static_cast<size_t>(r) / static_cast<size_t>(size) * unit);
  };
  return {at(rank), at(rank + 1) - at(rank)};
}

/// Runs `work(begin, count)` over pieces of all shares: the own share first, then what others have not begun.
template <class Work>
void ForEachPiece(Transport& transport, size_t count, size_t element_bytes, Work work) {
  const size_t piece_elements = kPieceBytes / element_bytes;
  const int size = transport.size();
  for (int step = 0; step < size; ++step) {
    const int owner = (transport.rank() + step) % size;
    const Share share = ShareOf(owner, size, count, element_bytes);
    const auto pieces = static_cast<uint32_t>((share.count + piece_elements - 1) / piece_elements);
    uint32_t piece = 0;
    while (transport.ClaimPiece(owner, pieces, &piece)) {
      const size_t offset = piece * piece_elements;
      work(share.begin + offset, std::min(piece_elements, share.count - offset));
    }
  }
}

void Copy(void* to, const void* from, size_t bytes) {
  if (bytes != 0 && to != from) std::memmove(to, from, bytes);
}

npu_reduce_fn RequireReduction(ElementType type, ReduceKind kind) {
  const npu_reduce_fn reduce = FindReduction(type, kind);
  if (reduce == nullptr) {
    throw CommError(NPU_ERROR_NOT_SUPPORTED,
                    std::string("hccl: ReduceOp.") + Name(kind) + " is not defined for " + Name(type));
  }
  return reduce;
}

/// Scratch for the operand lists of a reduction, reused between calls of a thread.
struct Operands {
  std::vector<const void*> inputs;
  std::vector<void*> outputs;
  std::vector<const std::byte*> input_bases;
  std::vector<std::byte*> output_bases;
  std::vector<double> factors;

  static Operands& OfThisThread() {
    static thread_local Operands operands;
    return operands;
  }

  void Clear() {
    inputs.clear();
    outputs.clear();
    input_bases.clear();
    output_bases.clear();
    factors.clear();
  }

  void Run(npu_reduce_fn reduce, size_t offset_bytes, size_t count) {
    inputs.resize(input_bases.size());
    outputs.resize(output_bases.size());
    for (size_t i = 0; i < inputs.size(); ++i) inputs[i] = input_bases[i] + offset_bytes;
    for (size_t i = 0; i < outputs.size(); ++i) outputs[i] = output_bases[i] + offset_bytes;
    npu_reduce_job job{};
    job.outputs = outputs.data();
    job.inputs = inputs.data();
    job.factors = factors.data();
    job.count = count;
    job.output_count = static_cast<int32_t>(outputs.size());
    job.input_count = static_cast<int32_t>(inputs.size());
    reduce(&job);
  }
};

void CollectFactors(Transport& transport, Operands& operands) {
  for (int peer = 0; peer < transport.size(); ++peer) operands.factors.push_back(transport.CallOf(peer).factor);
}

std::span<const std::byte> AsPayload(Region region) {
  return {static_cast<const std::byte*>(region.address), region.bytes};
}

}  // namespace

void AllReduce(Transport& transport, ElementType type, ReduceKind kind, double factor, Region data) {
  const npu_reduce_fn reduce = RequireReduction(type, kind);
  const size_t element = SizeOf(type);
  const size_t count = data.bytes / element;
  const Call call{CallKind::kAllReduce, type, kind, -1, count, factor};
  Operands& operands = Operands::OfThisThread();
  operands.Clear();
  if (data.bytes <= transport.inline_capacity()) {
    transport.Meet(call, AsPayload(data), {});
    RequireSameCall(transport, true);
    if (count == 0) return;
    for (int peer = 0; peer < transport.size(); ++peer) {
      operands.input_bases.push_back(transport.PayloadOf(peer).data());
    }
    operands.output_bases.push_back(static_cast<std::byte*>(data.address));
    CollectFactors(transport, operands);
    operands.Run(reduce, 0, count);
    return;
  }
  transport.Meet(call, {}, {&data, 1});
  RequireSameCall(transport, true);
  for (int peer = 0; peer < transport.size(); ++peer) {
    std::byte* base = transport.RegionOf(peer, 0).data();
    operands.input_bases.push_back(base);
    operands.output_bases.push_back(base);
  }
  CollectFactors(transport, operands);
  ForEachPiece(transport, count, element,
               [&](size_t begin, size_t length) { operands.Run(reduce, begin * element, length); });
  transport.Part();
}

void Broadcast(Transport& transport, ElementType type, int root, Region data) {
  const size_t element = SizeOf(type);
  const size_t count = data.bytes / element;
  const Call call{CallKind::kBroadcast, type, ReduceKind::kSum, root, count, 1.0};
  const bool is_root = transport.rank() == root;
  if (data.bytes <= transport.inline_capacity()) {
    transport.Meet(call, is_root ? AsPayload(data) : std::span<const std::byte>{}, {});
    RequireSameCall(transport, true);
    if (!is_root) Copy(data.address, transport.PayloadOf(root).data(), data.bytes);
    return;
  }
  transport.Meet(call, {}, {&data, 1});
  RequireSameCall(transport, true);
  // Every rank carries its share from the root to all others, so the root's core works as well.
  Operands& operands = Operands::OfThisThread();
  operands.Clear();
  const std::byte* source = transport.RegionOf(root, 0).data();
  for (int peer = 0; peer < transport.size(); ++peer) {
    if (peer != root) operands.output_bases.push_back(transport.RegionOf(peer, 0).data());
  }
  ForEachPiece(transport, count, element, [&](size_t begin, size_t length) {
    for (std::byte* target : operands.output_bases) {
      Copy(target + begin * element, source + begin * element, length * element);
    }
  });
  transport.Part();
}

void AllGather(Transport& transport, ElementType type, Region input, std::span<const Region> outputs) {
  const Call call{CallKind::kAllGather, type, ReduceKind::kSum, -1, input.bytes / SizeOf(type), 1.0};
  // Sizes may differ between ranks, so each decides for itself how its contribution travels.
  const bool fits = input.bytes <= transport.inline_capacity();
  transport.Meet(call, fits ? AsPayload(input) : std::span<const std::byte>{},
                 fits ? std::span<const Region>{} : std::span<const Region>{&input, 1});
  RequireSameCall(transport, false);
  bool any_region = false;
  for (int peer = 0; peer < transport.size(); ++peer) {
    const size_t bytes = transport.CallOf(peer).count * SizeOf(type);
    const Region& output = outputs[static_cast<size_t>(peer)];
    if (bytes != output.bytes) {
      FailMismatch(transport, peer,
                   ": the output for rank " + std::to_string(peer) + " has room for " +
                       std::to_string(output.bytes / SizeOf(type)) + " elements");
    }
    any_region = any_region || bytes > transport.inline_capacity();
  }
  for (int step = 0; step < transport.size(); ++step) {
    const int peer = (transport.rank() + step) % transport.size();
    const Region& output = outputs[static_cast<size_t>(peer)];
    const bool from_payload = output.bytes <= transport.inline_capacity();
    const void* source = peer == transport.rank() ? input.address
                         : from_payload           ? transport.PayloadOf(peer).data()
                                                  : transport.RegionOf(peer, 0).data();
    Copy(output.address, source, output.bytes);
  }
  if (any_region) transport.Part();
}

void Reduce(Transport& transport, ElementType type, ReduceKind kind, double factor, int root, Region data) {
  const npu_reduce_fn reduce = RequireReduction(type, kind);
  const size_t element = SizeOf(type);
  const size_t count = data.bytes / element;
  transport.Meet({CallKind::kReduce, type, kind, root, count, factor}, {}, {&data, 1});
  RequireSameCall(transport, true);
  Operands& operands = Operands::OfThisThread();
  operands.Clear();
  for (int peer = 0; peer < transport.size(); ++peer) {
    operands.input_bases.push_back(transport.RegionOf(peer, 0).data());
  }
  operands.output_bases.push_back(transport.RegionOf(root, 0).data());
  CollectFactors(transport, operands);
  ForEachPiece(transport, count, element,
               [&](size_t begin, size_t length) { operands.Run(reduce, begin * element, length); });
  transport.Part();
}

void ReduceScatter(Transport& transport, ElementType type, ReduceKind kind, double factor,
                   std::span<const Region> inputs, Region output) {
  const npu_reduce_fn reduce = RequireReduction(type, kind);
  const size_t element = SizeOf(type);
  size_t total = 0;
  for (const Region& input : inputs) total += input.bytes / element;
  transport.Meet({CallKind::kReduceScatter, type, kind, -1, total, factor}, {}, inputs);
  RequireSameCall(transport, true);
  Operands& operands = Operands::OfThisThread();
  operands.Clear();
  for (int peer = 0; peer < transport.size(); ++peer) {
    const std::span<std::byte> part = transport.RegionOf(peer, static_cast<size_t>(transport.rank()));
    if (part.size() != output.bytes) {
      FailMismatch(transport, peer,
                   ": it offers " + std::to_string(part.size() / element) + " elements for an output of " +
                       std::to_string(output.bytes / element));
    }
    operands.input_bases.push_back(part.data());
  }
  operands.output_bases.push_back(static_cast<std::byte*>(output.address));
  CollectFactors(transport, operands);
  if (output.bytes != 0) operands.Run(reduce, 0, output.bytes / element);
  transport.Part();
}

void AllToAll(Transport& transport, ElementType type, std::span<const Region> inputs, std::span<const Region> outputs) {
  size_t total = 0;
  for (const Region& input : inputs) total += input.bytes / SizeOf(type);
  transport.Meet({CallKind::kAllToAll, type, ReduceKind::kSum, -1, total, 1.0}, {}, inputs);
  RequireSameCall(transport, false);
  for (int step = 0; step < transport.size(); ++step) {
    const int peer = (transport.rank() + step) % transport.size();
    const std::span<std::byte> part = transport.RegionOf(peer, static_cast<size_t>(transport.rank()));
    const Region& output = outputs[static_cast<size_t>(peer)];
    if (part.size() != output.bytes) {
      FailMismatch(transport, peer,
                   ": it sends " + std::to_string(part.size() / SizeOf(type)) + " elements, this rank expects " +
                       std::to_string(output.bytes / SizeOf(type)));
    }
    Copy(output.address, part.data(), output.bytes);
  }
  transport.Part();
}

void Scatter(Transport& transport, ElementType type, int root, std::span<const Region> inputs, Region output) {
  transport.Meet({CallKind::kScatter, type, ReduceKind::kSum, root, output.bytes / SizeOf(type), 1.0}, {}, inputs);
  RequireSameCall(transport, false);
  const std::span<std::byte> part = transport.RegionOf(root, static_cast<size_t>(transport.rank()));
  if (part.size() != output.bytes) {
    FailMismatch(transport, root,
                 ": it sends " + std::to_string(part.size() / SizeOf(type)) + " elements, this rank expects " +
                     std::to_string(output.bytes / SizeOf(type)));
  }
  Copy(output.address, part.data(), output.bytes);
  transport.Part();
}

void Gather(Transport& transport, ElementType type, int root, Region input, std::span<const Region> outputs) {
  transport.Meet({CallKind::kGather, type, ReduceKind::kSum, root, input.bytes / SizeOf(type), 1.0}, {}, {&input, 1});
  RequireSameCall(transport, false);
  for (int peer = 0; transport.rank() == root && peer < transport.size(); ++peer) {
    const std::span<std::byte> part = transport.RegionOf(peer, 0);
    const Region& output = outputs[static_cast<size_t>(peer)];
    if (part.size() != output.bytes) {
      FailMismatch(transport, peer,
                   ": the output for it has room for " + std::to_string(output.bytes / SizeOf(type)) + " elements");
    }
    Copy(output.address, part.data(), output.bytes);
  }
  transport.Part();
}

void Barrier(Transport& transport) {
  transport.Meet({}, {}, {});
  RequireSameCall(transport, false);
}

}  // namespace npu::distributed
