// Reductions over hosts: every host reduces its operands to partial results, which meet at one rank, are combined in
// the order of the hosts and rounded once.
#include <algorithm>
#include <cstring>

#include "collectives/hierarchical_collectives.h"
#include "collectives/lanes.h"
#include "collectives/reduction.h"
#include "transport/comm_error.h"

namespace npu::distributed {

struct HierarchicalCollectives::Item {
  size_t count = 0;
  int final_host = 0;                    ///< the carrier of this host makes the result
  std::vector<int> carriers;             ///< by host: the rank that works on it
  std::vector<const std::byte*> inputs;  ///< operands of this host, in the order of its ranks
  std::vector<std::byte*> outputs;       ///< where the result goes on this host; the first one is this rank's
  bool spread = false;                   ///< the other carriers get the result too
};

/// A stretch of an item on its way through the steps.
struct HierarchicalCollectives::ItemChunk {
  const Item* item;
  size_t begin;
  size_t count;
  std::vector<std::byte*> partials;  ///< by host; only the own one where the result is made elsewhere
};

namespace {

// Partial results move in chunks, so that one travels while the next is computed and the last is combined.
constexpr size_t kMostChunkBytes = 1u << 20;
constexpr size_t kLeastChunkBytes = 64u << 10;
constexpr size_t kChunkBytesOfAllItems = 8u << 20;
constexpr size_t kCacheLine = 64;

TwoStepReduction RequireReduction(ElementType type, ReduceKind kind) {
  const TwoStepReduction steps = FindTwoStepReduction(type, kind);
  if (steps.partial == nullptr) {
    throw CommError(NPU_ERROR_NOT_SUPPORTED,
                    std::string("hccl: ReduceOp.") + Name(kind) + " is not defined for " + Name(type));
  }
  return steps;
}

void RunKernel(npu_reduce_fn kernel, const std::vector<const void*>& inputs, const std::vector<void*>& outputs,
               size_t count, const double* factors, int divisor) {
  if (count == 0) return;
  npu_reduce_job job{};
  job.inputs = inputs.data();
  job.outputs = outputs.data();
  job.factors = factors;
  job.count = count;
  job.input_count = static_cast<int32_t>(inputs.size());
  job.output_count = static_cast<int32_t>(outputs.size());
  job.divisor = divisor;
  kernel(&job);
}

std::span<const std::byte> BytesOf(Region region) {
  return {static_cast<const std::byte*>(region.address), region.bytes};
}

}  // namespace

std::vector<double> HierarchicalCollectives::LocalFactors() const {
  std::vector<double> factors;
  for (const int local : Locals()) factors.push_back(Of(local).call.factor);
  return factors;
}

void HierarchicalCollectives::AppendPartial(ElementType type, ReduceKind kind, std::vector<std::byte>& payload) const {
  const TwoStepReduction steps = RequireReduction(type, kind);
  const size_t count = Of(rank_).call.count;
  // The partial result begins where the record ends, at any address: the kernels need an aligned one.
  std::vector<std::byte> partial(count * steps.partial_bytes);
  std::vector<const void*> inputs;
  std::vector<std::vector<std::byte>> copies;
  for (const int local : Locals()) {
    copies.emplace_back(DataOf(local).begin(), DataOf(local).end());
    inputs.push_back(copies.back().data());
  }
  RunKernel(steps.partial, inputs, {partial.data()}, count, LocalFactors().data(), size());
  payload.insert(payload.end(), partial.begin(), partial.end());
}

void HierarchicalCollectives::ReduceSmall(ElementType type, ReduceKind kind, Region output) {
  const TwoStepReduction steps = RequireReduction(type, kind);
  std::vector<const void*> inputs;
  std::vector<std::vector<std::byte>> copies;
  for (int host = 0; host < hosts_.count(); ++host) {
    copies.emplace_back(PayloadOf(host).begin(), PayloadOf(host).end());
    inputs.push_back(copies.back().data());
  }
  RunKernel(steps.finish, inputs, {output.address}, output.bytes / SizeOf(type), nullptr, size());
}

/// Carries out the items of this rank.  `item_count` is the number of items of the whole call: all ranks must cut in
/// the same way.
void HierarchicalCollectives::ReduceItems(ElementType type, ReduceKind kind, const std::vector<Item>& items,
                                          size_t item_count) {
  const TwoStepReduction steps = RequireReduction(type, kind);
  const size_t element = SizeOf(type);
  const size_t chunk_bytes =
      std::clamp(kChunkBytesOfAllItems / std::max<size_t>(1, item_count), kLeastChunkBytes, kMostChunkBytes);
  const size_t chunk = chunk_bytes / steps.partial_bytes;
  const std::vector<double> factors = LocalFactors();
  const auto host_count = static_cast<size_t>(hosts_.count());
  const auto own_host = static_cast<size_t>(host_);
  size_t rounds = 0;
  for (const Item& item : items) rounds = std::max(rounds, (item.count + chunk - 1) / chunk);

  struct Round {
    std::vector<std::byte> memory;
    std::vector<ItemChunk> chunks;
    std::unique_ptr<LinkOperation> partials;
    std::unique_ptr<LinkOperation> results;
  };
  Round ring[3];

  const auto is_final = [&](const ItemChunk& part) { return part.item->final_host == host_; };

  const auto begin = [&](size_t number) {
    Round& round = ring[number % 3];
    round.chunks.clear();
    size_t slots = 0;
    for (const Item& item : items) {
      if (number * chunk >= item.count) continue;
      round.chunks.push_back({&item, number * chunk, std::min(chunk, item.count - number * chunk), {}});
      slots += item.final_host == host_ ? host_count : 1;
    }
    if (round.memory.size() < slots * chunk_bytes) round.memory.resize(slots * chunk_bytes);
    std::byte* free = round.memory.data();
    std::vector<Parcel> sends;
    std::vector<Parcel> receives;
    for (ItemChunk& part : round.chunks) {
      part.partials.assign(host_count, nullptr);
      for (size_t host = 0; host < host_count; ++host) {
        if (host != own_host && !is_final(part)) continue;
        part.partials[host] = free;
        free += chunk_bytes;
        if (host == own_host) continue;
        receives.push_back({part.item->carriers[host], part.partials[host], part.count * steps.partial_bytes});
      }
      std::vector<const void*> inputs;
      for (const std::byte* input : part.item->inputs) inputs.push_back(input + part.begin * element);
      RunKernel(steps.partial, inputs, {part.partials[own_host]}, part.count, factors.data(), size());
      if (!is_final(part)) {
        sends.push_back({part.item->carriers[static_cast<size_t>(part.item->final_host)], part.partials[own_host],
                         part.count * steps.partial_bytes});
      }
    }
    round.partials = link_->Start(Channel::kData, sends, receives);
  };

  const auto combine = [&](size_t number) {
    Round& round = ring[number % 3];
    Wait(*round.partials);
    std::vector<Parcel> sends;
    std::vector<Parcel> receives;
    for (const ItemChunk& part : round.chunks) {
      const Item& item = *part.item;
      if (is_final(part)) {
        std::vector<void*> outputs;
        for (std::byte* output : item.outputs) outputs.push_back(output + part.begin * element);
        RunKernel(steps.finish, {part.partials.begin(), part.partials.end()}, outputs, part.count, nullptr, size());
      }
      for (size_t host = 0; item.spread && host < host_count; ++host) {
        if (host == own_host) continue;
        const Parcel result{item.carriers[host], item.outputs.front() + part.begin * element, part.count * element};
        if (is_final(part)) {
          sends.push_back(result);
        } else if (static_cast<int>(host) == item.final_host) {
          receives.push_back(result);
        }
      }
    }
    round.results = link_->Start(Channel::kResults, sends, receives);
  };

  const auto finish = [&](size_t number) {
    Round& round = ring[number % 3];
    Wait(*round.results);
    for (const ItemChunk& part : round.chunks) {
      if (!part.item->spread || is_final(part)) continue;
      const std::vector<std::byte*>& outputs = part.item->outputs;
      for (size_t i = 1; i < outputs.size(); ++i) {
        std::memcpy(outputs[i] + part.begin * element, outputs[0] + part.begin * element, part.count * element);
      }
    }
  };

  for (size_t number = 0; number < rounds + 2; ++number) {
    if (number < rounds) begin(number);
    if (number >= 1 && number - 1 < rounds) combine(number - 1);
    if (number >= 2) finish(number - 2);
  }
}

void HierarchicalCollectives::AllReduce(ElementType type, ReduceKind kind, double factor, Region data) {
  Run([&] {
    RequireReduction(type, kind);
    const size_t element = SizeOf(type);
    const size_t count = data.bytes / element;
    const Call call{CallKind::kAllReduce, type, kind, -1, count, factor, data.layouts};
    if (data.bytes <= kSmallData) {
      Meet(call, {}, BytesOf(data), {}, [&](std::vector<std::byte>& payload) { AppendPartial(type, kind, payload); });
      ReduceSmall(type, kind, data);
      return;
    }
    Meet(call, {}, {}, {&data, 1});
    const int lanes = hosts_.widest();
    std::vector<Item> items;
    for (int lane = 0; lane < lanes; ++lane) {
      if (hosts_.Pick(host_, lane) != rank_) continue;
      const Share stretch = ShareOf(lane, lanes, count, kCacheLine);
      for (int host = 0; host < hosts_.count(); ++host) {
        const Share share = ShareOf(host, hosts_.count(), stretch.count, kCacheLine);
        const size_t offset = (stretch.begin + share.begin) * element;
        Item item;
        item.count = share.count;
        item.final_host = host;
        item.spread = true;
        for (int other = 0; other < hosts_.count(); ++other) item.carriers.push_back(hosts_.Pick(other, lane));
        item.outputs.push_back(static_cast<std::byte*>(data.address) + offset);
        for (const int local : Locals()) {
          std::byte* base = RegionOf(local, 0).data() + offset;
          item.inputs.push_back(base);
          if (local != rank_) item.outputs.push_back(base);
        }
        items.push_back(std::move(item));
      }
    }
    ReduceItems(type, kind, items, static_cast<size_t>(lanes) * static_cast<size_t>(hosts_.count()));
    transport_.Part();
  });
}

void HierarchicalCollectives::Reduce(ElementType type, ReduceKind kind, double factor, int root, Region data) {
  Run([&] {
    RequireReduction(type, kind);
    const size_t element = SizeOf(type);
    const size_t count = data.bytes / element;
    const Call call{CallKind::kReduce, type, kind, root, count, factor, data.layouts};
    if (data.bytes <= kSmallData) {
      Meet(call, {}, BytesOf(data), {}, [&](std::vector<std::byte>& payload) { AppendPartial(type, kind, payload); });
      if (rank_ == root) ReduceSmall(type, kind, data);
      return;
    }
    Meet(call, {}, {}, {&data, 1});
    const int lanes = hosts_.widest();
    std::vector<Item> items;
    for (int lane = 0; lane < lanes; ++lane) {
      if (hosts_.Pick(host_, lane) != rank_) continue;
      const Share share = ShareOf(lane, lanes, count, kCacheLine);
      Item item;
      item.count = share.count;
      item.final_host = hosts_.HostOf(root);
      for (int host = 0; host < hosts_.count(); ++host) item.carriers.push_back(hosts_.Pick(host, lane));
      for (const int local : Locals()) item.inputs.push_back(RegionOf(local, 0).data() + share.begin * element);
      if (IsLocal(root)) item.outputs.push_back(RegionOf(root, 0).data() + share.begin * element);
      items.push_back(std::move(item));
    }
    ReduceItems(type, kind, items, static_cast<size_t>(lanes));
    transport_.Part();
  });
}

void HierarchicalCollectives::ReduceScatter(ElementType type, ReduceKind kind, double factor,
                                            std::span<const Region> inputs, Region output) {
  Run([&] {
    RequireReduction(type, kind);
    const size_t element = SizeOf(type);
    std::vector<Extent> parts;
    size_t total = 0;
    for (const Region& input : inputs) {
      parts.push_back(input.extent());
      total += input.bytes / element;
    }
    Meet({CallKind::kReduceScatter, type, kind, -1, total, factor}, parts, {}, inputs);
    if (output.bytes != inputs[static_cast<size_t>(rank_)].bytes) {
      FailMismatch(rank_, rank_,
                   ": its output has room for " + DescribeBytes(output.bytes, type) + ", its part is " +
                       DescribeBytes(inputs[static_cast<size_t>(rank_)].bytes, type));
    }
    // The part of a rank is carried, on every other host, by the rank with the same place there.
    std::vector<Item> items;
    for (int target = 0; target < size(); ++target) {
      const int index = hosts_.IndexOf(target);
      if (hosts_.Pick(host_, index) != rank_ || (IsLocal(target) && target != rank_)) continue;
      Item item;
      item.count = inputs[static_cast<size_t>(target)].bytes / element;
      item.final_host = hosts_.HostOf(target);
      for (int host = 0; host < hosts_.count(); ++host) item.carriers.push_back(hosts_.Pick(host, index));
      for (const int local : Locals()) {
        item.inputs.push_back(RegionOf(local, static_cast<size_t>(target)).data());
      }
      if (target == rank_) item.outputs.push_back(static_cast<std::byte*>(output.address));
      items.push_back(std::move(item));
    }
    ReduceItems(type, kind, items, static_cast<size_t>(size()));
    transport_.Part();
  });
}

}  // namespace npu::distributed
