#include "collectives/algorithms.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "collectives/matching.h"
#include "collectives/reduction.h"
#include "collectives/streaming_copy.h"
#include "transport/comm_error.h"

namespace npu::distributed {
namespace {

// Shares are cut into pieces that any idle rank may take: with as many ranks as cores one of them is often descheduled
// in the middle.  Large enough that claiming is free, small enough that the last piece is not waited for long.
constexpr size_t kPieceBytes = 512 * 1024;

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

uint32_t PiecesOf(size_t length, size_t piece) { return static_cast<uint32_t>((length + piece - 1) / piece); }

/// Runs `work(owner, piece)` for all pieces, of which `owner` has `pieces_of(owner)`: the own ones first, then what
/// others have not begun.
template <class PiecesOf, class Work>
void ForEachOwnedPiece(Transport& transport, PiecesOf pieces_of, Work work) {
  const int size = transport.size();
  for (int step = 0; step < size; ++step) {
    const int owner = (transport.rank() + step) % size;
    const uint32_t pieces = pieces_of(owner);
    uint32_t piece = 0;
    while (transport.ClaimPiece(owner, pieces, &piece)) work(owner, piece);
  }
}

/// Runs `work(begin, count)` over pieces of a buffer of which each rank owns a share.
template <class Work>
void ForEachPiece(Transport& transport, size_t count, size_t element_bytes, Work work) {
  const size_t length = kPieceBytes / element_bytes;
  const auto share = [&](int owner) { return ShareOf(owner, transport.size(), count, element_bytes); };
  ForEachOwnedPiece(
      transport, [&](int owner) { return PiecesOf(share(owner).count, length); },
      [&](int owner, uint32_t piece) {
        const Share all = share(owner);
        const size_t offset = piece * length;
        work(all.begin + offset, std::min(length, all.count - offset));
      });
}

/// Copies a part of a collective that moves `total` bytes.
void Copy(void* to, const void* from, size_t bytes, size_t total) {
  if (bytes == 0 || to == from) return;
  if (total >= kStreamingBytes) {
    StreamingCopy(to, from, bytes);
  } else {
    std::memmove(to, from, bytes);
  }
}

/// Copies to several targets while the source is in the first-level cache.
void CopyToAll(std::span<std::byte* const> targets, const std::byte* from, size_t bytes, size_t total) {
  constexpr size_t kBlock = 8192;
  for (size_t begin = 0; begin < bytes; begin += kBlock) {
    const size_t length = std::min(kBlock, bytes - begin);
    for (std::byte* target : targets) Copy(target + begin, from + begin, length, total);
  }
}

size_t Sum(std::span<const Region> regions) {
  size_t bytes = 0;
  for (const Region& region : regions) bytes += region.bytes;
  return bytes;
}

/// The regions one behind the other, in a buffer of this thread.
std::span<const std::byte> Packed(std::span<const Region> regions) {
  static thread_local std::vector<std::byte> buffer;
  buffer.clear();
  for (const Region& region : regions) {
    const auto* begin = static_cast<const std::byte*>(region.address);
    if (region.bytes != 0) buffer.insert(buffer.end(), begin, begin + region.bytes);
  }
  return buffer;
}

/// The payload of `rank`, which must have `bytes` bytes.
const std::byte* RequirePayload(Transport& transport, int rank, size_t bytes) {
  const std::span<const std::byte> payload = transport.PayloadOf(rank);
  if (payload.size() != bytes) FailMismatch(transport, transport.rank(), rank, ": the payload has another size");
  return payload.data();
}

/// Region `index` of `rank`, which must have `bytes` bytes.
std::byte* RequireRegion(Transport& transport, int rank, size_t index, size_t bytes) {
  const std::span<std::byte> region = transport.RegionOf(rank, index);
  if (region.size() != bytes) FailMismatch(transport, transport.rank(), rank, ": the buffer has another size");
  return region.data();
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

  /// Reduces `count` elements, `input_offset` bytes behind the bases of the inputs.
  void Run(npu_reduce_fn reduce, size_t input_offset, size_t output_offset, size_t count) {
    inputs.resize(input_bases.size());
    outputs.resize(output_bases.size());
    for (size_t i = 0; i < inputs.size(); ++i) inputs[i] = input_bases[i] + input_offset;
    for (size_t i = 0; i < outputs.size(); ++i) outputs[i] = output_bases[i] + output_offset;
    npu_reduce_job job{};
    job.outputs = outputs.data();
    job.inputs = inputs.data();
    job.factors = factors.data();
    job.count = count;
    job.output_count = static_cast<int32_t>(outputs.size());
    job.input_count = static_cast<int32_t>(inputs.size());
    reduce(&job);
  }

  /// The same with elements [begin, begin + count) of one target, of which `total` bytes are written in all.
  void RunTo(npu_reduce_fn reduce, std::byte* target, size_t begin, size_t count, size_t element, size_t total) {
    if (total < kStreamingBytes) {
      output_bases.assign(1, target);
      Run(reduce, begin * element, begin * element, count);
      return;
    }
    // Reduced in the second-level cache, then stored past it.  64 MiB of two ranks: 5.4 ms with this block, 7.4 ms with
    // 16 KiB, 6.1 ms with ordinary stores.
    constexpr size_t kBlockBytes = 65536;
    alignas(64) static thread_local std::byte block[kBlockBytes];
    const size_t length = kBlockBytes / element;
    output_bases.assign(1, block);
    for (size_t done = 0; done < count; done += length) {
      const size_t now = std::min(length, count - done);
      const size_t offset = (begin + done) * element;
      Run(reduce, offset, 0, now);
      StreamingCopy(target + offset, block, now * element);
    }
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
  const Call call{CallKind::kAllReduce, type, kind, -1, count, factor, data.layouts};
  Operands& operands = Operands::OfThisThread();
  operands.Clear();
  if (data.bytes <= transport.inline_capacity()) {
    transport.Meet(call, AsPayload(data), {});
    RequireSameCall(transport, true);
    if (count == 0) return;
    for (int peer = 0; peer < transport.size(); ++peer) {
      operands.input_bases.push_back(RequirePayload(transport, peer, data.bytes));
    }
    operands.output_bases.push_back(static_cast<std::byte*>(data.address));
    CollectFactors(transport, operands);
    operands.Run(reduce, 0, 0, count);
    return;
  }
  transport.Meet(call, {}, {&data, 1});
  RequireSameCall(transport, true);
  for (int peer = 0; peer < transport.size(); ++peer) {
    std::byte* base = RequireRegion(transport, peer, 0, data.bytes);
    operands.input_bases.push_back(base);
    operands.output_bases.push_back(base);
  }
  CollectFactors(transport, operands);
  ForEachPiece(transport, count, element,
               [&](size_t begin, size_t length) { operands.Run(reduce, begin * element, begin * element, length); });
  transport.Part();
}

void Broadcast(Transport& transport, ElementType type, int root, Region data) {
  const size_t element = SizeOf(type);
  const size_t count = data.bytes / element;
  const Call call{CallKind::kBroadcast, type, ReduceKind::kSum, root, count, 1.0, data.layouts};
  const bool is_root = transport.rank() == root;
  if (data.bytes <= transport.inline_capacity()) {
    transport.Meet(call, is_root ? AsPayload(data) : std::span<const std::byte>{}, {});
    RequireSameCall(transport, true);
    if (!is_root && count != 0) {
      std::memcpy(data.address, RequirePayload(transport, root, data.bytes), data.bytes);
    }
    return;
  }
  transport.Meet(call, {}, {&data, 1});
  RequireSameCall(transport, true);
  // Every rank carries its share from the root to all others, so the root's core works as well.
  const std::byte* source = RequireRegion(transport, root, 0, data.bytes);
  std::vector<std::byte*> targets;
  for (int peer = 0; peer < transport.size(); ++peer) {
    if (peer != root) targets.push_back(RequireRegion(transport, peer, 0, data.bytes));
  }
  Operands& operands = Operands::OfThisThread();
  operands.Clear();
  ForEachPiece(transport, count, element, [&](size_t begin, size_t length) {
    operands.output_bases = targets;
    for (std::byte*& target : operands.output_bases) target += begin * element;
    CopyToAll(operands.output_bases, source + begin * element, length * element, data.bytes * targets.size());
  });
  transport.Part();
}

void AllGather(Transport& transport, ElementType type, Region input, std::span<const Region> outputs) {
  const Call call{CallKind::kAllGather, type, ReduceKind::kSum, -1, input.bytes / SizeOf(type), 1.0, input.layouts};
  const int size = transport.size();
  // When the sizes fit together all ranks have the same outputs, and so all choose the same way.
  size_t largest = input.bytes;
  for (const Region& output : outputs) largest = std::max(largest, output.bytes);
  const bool in_payload = largest <= transport.inline_capacity();
  std::vector<Region> regions{input};
  regions.insert(regions.end(), outputs.begin(), outputs.end());
  transport.Meet(call, in_payload ? AsPayload(input) : std::span<const std::byte>{}, regions);
  RequireSameCall(transport, false);
  for (int to = 0; to < size; ++to) {
    for (int from = 0; from < size; ++from) {
      RequireFit(transport, from, transport.ExtentOf(from, 0), to,
                 transport.ExtentOf(to, 1 + static_cast<size_t>(from)));
    }
  }
  if (in_payload) {
    for (int from = 0; from < size; ++from) {
      const Region& output = outputs[static_cast<size_t>(from)];
      if (output.bytes == 0) continue;
      const std::byte* source = RequirePayload(transport, from, output.bytes);
      std::memcpy(output.address, source, output.bytes);
    }
    return;
  }
  // A piece of an input is read once and stored to all outputs.
  const size_t total = Sum(outputs) * static_cast<size_t>(size);
  std::vector<std::byte*> targets;
  ForEachOwnedPiece(
      transport, [&](int from) { return PiecesOf(outputs[static_cast<size_t>(from)].bytes, kPieceBytes); },
      [&](int from, uint32_t piece) {
        const size_t bytes = outputs[static_cast<size_t>(from)].bytes;
        const size_t begin = piece * kPieceBytes;
        const std::byte* source = RequireRegion(transport, from, 0, bytes);
        targets.clear();
        for (int to = 0; to < size; ++to) {
          std::byte* target = RequireRegion(transport, to, 1 + static_cast<size_t>(from), bytes);
          if (target != source) targets.push_back(target + begin);
        }
        CopyToAll(targets, source + begin, std::min(kPieceBytes, bytes - begin), total);
      });
  transport.Part();
}

void Reduce(Transport& transport, ElementType type, ReduceKind kind, double factor, int root, Region data) {
  const npu_reduce_fn reduce = RequireReduction(type, kind);
  const size_t element = SizeOf(type);
  const size_t count = data.bytes / element;
  const Call call{CallKind::kReduce, type, kind, root, count, factor, data.layouts};
  Operands& operands = Operands::OfThisThread();
  operands.Clear();
  if (data.bytes <= transport.inline_capacity()) {
    transport.Meet(call, AsPayload(data), {});
    RequireSameCall(transport, true);
    if (count == 0 || transport.rank() != root) return;
    for (int peer = 0; peer < transport.size(); ++peer) {
      operands.input_bases.push_back(RequirePayload(transport, peer, data.bytes));
    }
    operands.output_bases.push_back(static_cast<std::byte*>(data.address));
    CollectFactors(transport, operands);
    operands.Run(reduce, 0, 0, count);
    return;
  }
  transport.Meet(call, {}, {&data, 1});
  RequireSameCall(transport, true);
  for (int peer = 0; peer < transport.size(); ++peer) {
    operands.input_bases.push_back(RequireRegion(transport, peer, 0, data.bytes));
  }
  operands.output_bases.push_back(RequireRegion(transport, root, 0, data.bytes));
  CollectFactors(transport, operands);
  ForEachPiece(transport, count, element,
               [&](size_t begin, size_t length) { operands.Run(reduce, begin * element, begin * element, length); });
  transport.Part();
}

void ReduceScatter(Transport& transport, ElementType type, ReduceKind kind, double factor,
                   std::span<const Region> inputs, Region output) {
  const npu_reduce_fn reduce = RequireReduction(type, kind);
  const size_t element = SizeOf(type);
  const int size = transport.size();
  const size_t total = Sum(inputs);
  const size_t output_index = inputs.size();
  std::vector<Region> regions(inputs.begin(), inputs.end());
  regions.push_back(output);
  // All ranks have inputs of the same sizes, and so all choose the same way.
  const bool in_payload = total <= transport.inline_capacity();
  transport.Meet({CallKind::kReduceScatter, type, kind, -1, total / element, factor},
                 in_payload ? Packed(inputs) : std::span<const std::byte>{}, regions);
  RequireSameCall(transport, true);
  for (int to = 0; to < size; ++to) {
    for (int from = 0; from < size; ++from) {
      RequireFit(transport, from, transport.ExtentOf(from, static_cast<size_t>(to)), to,
                 transport.ExtentOf(to, output_index));
    }
  }
  Operands& operands = Operands::OfThisThread();
  operands.Clear();
  CollectFactors(transport, operands);
  if (in_payload) {
    if (output.bytes == 0) return;
    const size_t offset = Sum(inputs.first(static_cast<size_t>(transport.rank())));
    for (int from = 0; from < size; ++from) {
      operands.input_bases.push_back(RequirePayload(transport, from, total) + offset);
    }
    operands.output_bases.push_back(static_cast<std::byte*>(output.address));
    operands.Run(reduce, 0, 0, output.bytes / element);
    return;
  }
  const size_t length = kPieceBytes / element;
  ForEachOwnedPiece(
      transport, [&](int to) { return PiecesOf(inputs[static_cast<size_t>(to)].bytes / element, length); },
      [&](int to, uint32_t piece) {
        const size_t bytes = inputs[static_cast<size_t>(to)].bytes;
        const size_t begin = piece * length;
        const size_t count = std::min(length, bytes / element - begin);
        operands.input_bases.clear();
        for (int from = 0; from < size; ++from) {
          operands.input_bases.push_back(RequireRegion(transport, from, static_cast<size_t>(to), bytes));
        }
        std::byte* target = RequireRegion(transport, to, output_index, bytes);
        operands.RunTo(reduce, target, begin, count, element, total);
      });
  transport.Part();
}

void AllToAll(Transport& transport, ElementType type, std::span<const Region> inputs, std::span<const Region> outputs) {
  const int size = transport.size();
  const auto ranks = static_cast<size_t>(size);
  const size_t sent = Sum(inputs);
  std::vector<Region> regions(inputs.begin(), inputs.end());
  regions.insert(regions.end(), outputs.begin(), outputs.end());
  // Each rank decides for itself how its inputs travel; all know it of all, from the sizes.
  const size_t capacity = transport.inline_capacity();
  transport.Meet({CallKind::kAllToAll, type, ReduceKind::kSum, -1, sent / SizeOf(type), 1.0},
                 sent <= capacity ? Packed(inputs) : std::span<const std::byte>{}, regions);
  RequireSameCall(transport, false);
  size_t total = 0;
  bool any_region = false;
  for (int from = 0; from < size; ++from) {
    size_t row = 0;
    for (int to = 0; to < size; ++to) {
      const Extent sends = transport.ExtentOf(from, static_cast<size_t>(to));
      RequireFit(transport, from, sends, to, transport.ExtentOf(to, ranks + static_cast<size_t>(from)));
      row += sends.bytes;
    }
    total += row;
    any_region = any_region || row > capacity;
  }
  const auto row_of = [&](int from) {
    size_t bytes = 0;
    for (size_t to = 0; to < ranks; ++to) bytes += transport.RegionBytes(from, to);
    return bytes;
  };
  const auto source_of = [&](int from, int to) -> const std::byte* {
    const auto index = static_cast<size_t>(to);
    const size_t row = row_of(from);
    if (row > capacity) return RequireRegion(transport, from, index, transport.RegionBytes(from, index));
    size_t offset = 0;
    for (size_t before = 0; before < index; ++before) offset += transport.RegionBytes(from, before);
    return RequirePayload(transport, from, row) + offset;
  };
  // The outputs of a rank whose inputs travelled in the payload are filled by itself: peers cannot address them.
  const auto can_fill = [&](int to) { return to == transport.rank() || row_of(to) > capacity; };
  const auto pieces_between = [&](int from, int to) {
    return PiecesOf(transport.RegionBytes(from, static_cast<size_t>(to)), kPieceBytes);
  };
  ForEachOwnedPiece(
      transport,
      [&](int to) {
        uint32_t pieces = 0;
        for (int from = 0; can_fill(to) && from < size; ++from) pieces += pieces_between(from, to);
        return pieces;
      },
      [&](int to, uint32_t piece) {
        int from = 0;
        while (piece >= pieces_between(from, to)) piece -= pieces_between(from++, to);
        const size_t bytes = transport.RegionBytes(from, static_cast<size_t>(to));
        const size_t begin = piece * kPieceBytes;
        std::byte* target = to == transport.rank()
                                ? static_cast<std::byte*>(outputs[static_cast<size_t>(from)].address)
                                : RequireRegion(transport, to, ranks + static_cast<size_t>(from), bytes);
        Copy(target + begin, source_of(from, to) + begin, std::min(kPieceBytes, bytes - begin), total);
      });
  if (any_region) transport.Part();
}

void Scatter(Transport& transport, ElementType type, int root, std::span<const Region> inputs, Region output) {
  const int rank = transport.rank();
  const bool is_root = rank == root;
  const size_t sent = Sum(inputs);
  const bool in_payload = is_root && sent <= transport.inline_capacity();
  transport.Meet({CallKind::kScatter, type, ReduceKind::kSum, root, output.bytes / SizeOf(type), 1.0, output.layouts},
                 in_payload ? Packed(inputs) : std::span<const std::byte>{},
                 is_root ? inputs : std::span<const Region>{});
  RequireSameCall(transport, false);
  size_t total = 0;
  size_t offset = 0;
  for (int to = 0; to < transport.size(); ++to) {
    const Extent sends = transport.ExtentOf(root, static_cast<size_t>(to));
    const Call& receiving = transport.CallOf(to);
    RequireFit(transport, root, sends, to, {receiving.count * SizeOf(type), receiving.layouts});
    if (to < rank) offset += sends.bytes;
    total += sends.bytes;
  }
  if (total <= transport.inline_capacity()) {
    if (output.bytes != 0) {
      std::memcpy(output.address, RequirePayload(transport, root, total) + offset, output.bytes);
    }
    return;
  }
  Copy(output.address, RequireRegion(transport, root, static_cast<size_t>(rank), output.bytes), output.bytes, total);
  transport.Part();
}

void Gather(Transport& transport, ElementType type, int root, Region input, std::span<const Region> outputs) {
  const bool is_root = transport.rank() == root;
  const size_t capacity = transport.inline_capacity();
  // Each rank decides for itself how its input travels; all know it of all, from the sizes.
  std::vector<Region> regions{input};
  regions.insert(regions.end(), outputs.begin(), outputs.end());
  transport.Meet({CallKind::kGather, type, ReduceKind::kSum, root, input.bytes / SizeOf(type), 1.0, input.layouts},
                 input.bytes <= capacity ? AsPayload(input) : std::span<const std::byte>{}, regions);
  RequireSameCall(transport, false);
  size_t total = 0;
  bool any_region = false;
  for (int from = 0; from < transport.size(); ++from) {
    const Extent sends = transport.ExtentOf(from, 0);
    RequireFit(transport, from, sends, root, transport.ExtentOf(root, 1 + static_cast<size_t>(from)));
    total += sends.bytes;
    any_region = any_region || sends.bytes > capacity;
  }
  for (int from = 0; is_root && from < transport.size(); ++from) {
    const Region& output = outputs[static_cast<size_t>(from)];
    if (output.bytes == 0) continue;
    const std::byte* source = output.bytes <= capacity ? RequirePayload(transport, from, output.bytes)
                                                       : RequireRegion(transport, from, 0, output.bytes);
    Copy(output.address, source, output.bytes, total);
  }
  if (any_region) transport.Part();
}

void Barrier(Transport& transport) {
  transport.Meet({}, {}, {});
  RequireSameCall(transport, false);
}

void Agree(Transport& transport, std::string_view operation) {
  const std::span<const char> text(operation.substr(0, kOperationBytes));
  transport.Meet(OperatorCall(operation), std::as_bytes(text), {});
  RequireSameCall(transport, true);
}

}  // namespace npu::distributed
