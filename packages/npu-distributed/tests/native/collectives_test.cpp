// Transport and algorithms between forked processes.  Exit status 0 when everything passed.
#include <cmath>
#include <cstdlib>

#include "collectives/algorithms.h"
#include "forked_group.h"

using namespace npu::distributed;
using namespace npu::distributed::testing;

namespace {

Region RegionOf(void* address, size_t bytes) { return {address, bytes}; }

float Value(int rank, size_t i) { return static_cast<float>((i * 7 + static_cast<size_t>(rank) * 13) % 101) - 50.0f; }

void AllReduceSizes(Rank& self) {
  for (const size_t count : {0ul, 1ul, 3ul, 17ul, 2048ul, 2049ul, 100003ul, 1000001ul}) {
    self.memory.Reset();
    float* data = self.memory.Allocate<float>(count + 1);
    for (size_t i = 0; i < count; ++i) data[i] = Value(self.rank, i);
    data[count] = -7.0f;  // guard: nothing may be written behind the buffer
    AllReduce(self.transport, ElementType::kFloat32, ReduceKind::kSum, 1.0, RegionOf(data, count * 4));
    for (size_t i = 0; i < count; ++i) {
      float expected = 0;
      for (int rank = 0; rank < self.size; ++rank) expected += Value(rank, i);
      EXPECT(data[i] == expected);
    }
    EXPECT(data[count] == -7.0f);
  }
}

void AllReduceKinds(Rank& self) {
  for (const size_t count : {5ul, 50021ul}) {
    for (const ReduceKind kind : {ReduceKind::kSum, ReduceKind::kAverage, ReduceKind::kProduct, ReduceKind::kMin,
                                  ReduceKind::kMax, ReduceKind::kPremulSum}) {
      self.memory.Reset();
      double* data = self.memory.Allocate<double>(count);
      for (size_t i = 0; i < count; ++i) data[i] = Value(self.rank, i);
      AllReduce(self.transport, ElementType::kFloat64, kind, 0.5 + self.rank, RegionOf(data, count * 8));
      for (size_t i = 0; i < count; ++i) {
        double expected = kind == ReduceKind::kPremulSum ? 0.5 * Value(0, i) : Value(0, i);
        for (int rank = 1; rank < self.size; ++rank) {
          const double value = Value(rank, i);
          switch (kind) {
            case ReduceKind::kSum:
            case ReduceKind::kAverage:
              expected += value;
              break;
            case ReduceKind::kProduct:
              expected *= value;
              break;
            case ReduceKind::kMin:
              expected = std::min(expected, value);
              break;
            case ReduceKind::kMax:
              expected = std::max(expected, value);
              break;
            case ReduceKind::kPremulSum:
              expected += (0.5 + rank) * value;
              break;
          }
        }
        if (kind == ReduceKind::kAverage) expected /= self.size;
        EXPECT(data[i] == expected);
      }
    }
  }
}

void BroadcastEveryRoot(Rank& self) {
  for (const size_t count : {0ul, 9ul, 8192ul, 3000017ul}) {
    for (int root = 0; root < self.size; ++root) {
      self.memory.Reset();
      auto* data = self.memory.Allocate<uint8_t>(count);
      for (size_t i = 0; i < count; ++i) data[i] = static_cast<uint8_t>(i * 3 + static_cast<size_t>(self.rank));
      Broadcast(self.transport, ElementType::kUInt8, root, RegionOf(data, count));
      for (size_t i = 0; i < count; ++i) EXPECT(data[i] == static_cast<uint8_t>(i * 3 + static_cast<size_t>(root)));
    }
  }
}

void AllGatherUneven(Rank& self) {
  for (const size_t base : {0ul, 5ul, 2000ul, 300007ul}) {
    self.memory.Reset();
    const auto count = [&](int rank) { return base + static_cast<size_t>(rank) * (base / 2); };
    auto* input = self.memory.Allocate<int32_t>(count(self.rank));
    for (size_t i = 0; i < count(self.rank); ++i) input[i] = static_cast<int32_t>(i) * 10 + self.rank;
    std::vector<Region> outputs;
    for (int rank = 0; rank < self.size; ++rank) {
      outputs.push_back(RegionOf(self.memory.Allocate<int32_t>(count(rank)), count(rank) * 4));
    }
    AllGather(self.transport, ElementType::kInt32, RegionOf(input, count(self.rank) * 4), outputs);
    for (int rank = 0; rank < self.size; ++rank) {
      const auto* output = static_cast<const int32_t*>(outputs[static_cast<size_t>(rank)].address);
      for (size_t i = 0; i < count(rank); ++i) EXPECT(output[i] == static_cast<int32_t>(i) * 10 + rank);
    }
  }
}

void ScatterFamilyOf(Rank& self, size_t count, int roots) {
  const auto size = static_cast<size_t>(self.size);
  const auto fill = [&](int source, int target, size_t i) {
    return source * 1000 + target * 100 + static_cast<int>(i % 50);
  };
  for (int root = 0; root < roots; ++root) {
    self.memory.Reset();
    std::vector<Region> inputs;
    std::vector<Region> outputs;
    for (int rank = 0; rank < self.size; ++rank) {
      auto* part = self.memory.Allocate<int32_t>(count);
      for (size_t i = 0; i < count; ++i) part[i] = fill(self.rank, rank, i);
      inputs.push_back(RegionOf(part, count * 4));
      outputs.push_back(RegionOf(self.memory.Allocate<int32_t>(count), count * 4));
    }
    auto* output = static_cast<int32_t*>(outputs[0].address);
    ReduceScatter(self.transport, ElementType::kInt32, ReduceKind::kSum, 1.0, inputs, outputs[0]);
    for (size_t i = 0; i < count; ++i) {
      int expected = 0;
      for (int rank = 0; rank < self.size; ++rank) expected += fill(rank, self.rank, i);
      EXPECT(output[i] == expected);
    }
    AllToAll(self.transport, ElementType::kInt32, inputs, outputs);
    for (int rank = 0; rank < self.size; ++rank) {
      const auto* got = static_cast<const int32_t*>(outputs[static_cast<size_t>(rank)].address);
      for (size_t i = 0; i < count; ++i) EXPECT(got[i] == fill(rank, self.rank, i));
    }
    const std::span<const Region> offered =
        self.rank == root ? std::span<const Region>(inputs) : std::span<const Region>();
    Scatter(self.transport, ElementType::kInt32, root, offered, outputs[0]);
    for (size_t i = 0; i < count; ++i) EXPECT(output[i] == fill(root, self.rank, i));
    Gather(self.transport, ElementType::kInt32, root, inputs[size - 1],
           self.rank == root ? std::span<const Region>(outputs) : std::span<const Region>());
    for (int rank = 0; rank < self.size && self.rank == root; ++rank) {
      const auto* got = static_cast<const int32_t*>(outputs[static_cast<size_t>(rank)].address);
      for (size_t i = 0; i < count; ++i) EXPECT(got[i] == fill(rank, self.size - 1, i));
    }
    auto* mine = static_cast<int32_t*>(inputs[0].address);
    Reduce(self.transport, ElementType::kInt32, ReduceKind::kMax, 1.0, root, inputs[0]);
    for (size_t i = 0; i < count; ++i) {
      EXPECT(mine[i] == fill(self.rank == root ? self.size - 1 : self.rank, 0, i));
    }
  }
}

void ScatterFamily(Rank& self) {
  for (const size_t count : {0ul, 7ul, 600ul, 40013ul}) ScatterFamilyOf(self, count, self.size);
}

// Sizes from which stores go past the caches, and no multiple of any block.
void LargeBuffers(Rank& self) {
  ScatterFamilyOf(self, 2500013, 1);
  self.memory.Reset();
  const size_t count = 3000007;
  std::vector<Region> outputs;
  auto* whole = self.memory.Allocate<int32_t>(count * static_cast<size_t>(self.size));
  for (int rank = 0; rank < self.size; ++rank) {
    outputs.push_back(RegionOf(whole + static_cast<size_t>(rank) * count, count * 4));
  }
  // In place, as sharded parameters are gathered.
  auto* mine = static_cast<int32_t*>(outputs[static_cast<size_t>(self.rank)].address);
  for (size_t i = 0; i < count; ++i) mine[i] = static_cast<int32_t>(i) * 3 + self.rank;
  AllGather(self.transport, ElementType::kInt32, outputs[static_cast<size_t>(self.rank)], outputs);
  for (size_t i = 0; i < count * static_cast<size_t>(self.size); ++i) {
    EXPECT(whole[i] == static_cast<int32_t>(i % count) * 3 + static_cast<int32_t>(i / count));
  }
  for (int root = 0; root < 2; ++root) {
    std::memset(whole, self.rank, count * 8);
    Broadcast(self.transport, ElementType::kInt32, root, RegionOf(whole, count * 8));
    for (size_t i = 0; i < count * 2; ++i) EXPECT(whole[i] == 0x01010101 * root);
  }
}

// Sizes of every pair of ranks differ, and some ranks send little while others send much.
void AllToAllUneven(Rank& self) {
  for (const size_t unit : {1ul, 500ul, 30000ul}) {
    self.memory.Reset();
    const auto count = [&](int from, int to) {
      return from == 1 ? size_t{3} : unit * static_cast<size_t>((from + 2 * to) % 4);
    };
    std::vector<Region> inputs;
    std::vector<Region> outputs;
    for (int peer = 0; peer < self.size; ++peer) {
      auto* part = self.memory.Allocate<int16_t>(count(self.rank, peer));
      for (size_t i = 0; i < count(self.rank, peer); ++i) {
        part[i] = static_cast<int16_t>(i * 5 + static_cast<size_t>(self.rank * 16 + peer));
      }
      inputs.push_back(RegionOf(part, count(self.rank, peer) * 2));
      outputs.push_back(RegionOf(self.memory.Allocate<int16_t>(count(peer, self.rank)), count(peer, self.rank) * 2));
    }
    AllToAll(self.transport, ElementType::kInt16, inputs, outputs);
    for (int peer = 0; peer < self.size; ++peer) {
      const auto* part = static_cast<const int16_t*>(outputs[static_cast<size_t>(peer)].address);
      for (size_t i = 0; i < count(peer, self.rank); ++i) {
        EXPECT(part[i] == static_cast<int16_t>(i * 5 + static_cast<size_t>(peer * 16 + self.rank)));
      }
    }
  }
}

// Many calls of changing sizes: any slip in the turn-taking of slots or piece counters shows here.
void ManyCalls(Rank& self) {
  self.memory.Reset();
  auto* data = self.memory.Allocate<int64_t>(400000);
  for (int round = 0; round < 400; ++round) {
    const size_t count = round % 3 == 0 ? 300000 + static_cast<size_t>(round) : 1 + static_cast<size_t>(round);
    for (size_t i = 0; i < count; i += 97) data[i] = round + self.rank;
    AllReduce(self.transport, ElementType::kInt64, ReduceKind::kSum, 1.0, RegionOf(data, count * 8));
    for (size_t i = 0; i < count; i += 97) {
      EXPECT(data[i] == static_cast<int64_t>(round) * self.size + self.size * (self.size - 1) / 2);
    }
    if (round % 7 == self.rank) usleep(200);
  }
}

void ImportsAreCached(Rank& self) {
  auto* data = self.memory.Allocate<float>(100000);
  for (int round = 0; round < 5; ++round) {
    AllReduce(self.transport, ElementType::kFloat32, ReduceKind::kMax, 1.0, RegionOf(data, 400000));
  }
  EXPECT(self.memory.imports == self.size - 1);
}

void MismatchedCalls(Rank& self) {
  auto* data = self.memory.Allocate<float>(4096);
  const std::string text = ErrorOf([&] {
    if (self.rank == 0) {
      AllReduce(self.transport, ElementType::kFloat32, ReduceKind::kSum, 1.0, RegionOf(data, 64));
    } else {
      Broadcast(self.transport, ElementType::kFloat32, 1, RegionOf(data, 64));
    }
  });
  EXPECT(Contains(text, "EI0005") && Contains(text, "all_reduce(16 x float32") && Contains(text, "broadcast(16"));
  EXPECT(
      Contains(text, "call number 1: rank 0 all_reduce(16 x float32, op=SUM), rank 1 broadcast(16 x float32, root=1)"));
  // The group stays failed, so no rank can go on with wrong data.
  EXPECT(Contains(ErrorOf([&] { Barrier(self.transport); }), "EI0005"));
}

// The text of an operator shows up in the error of a rank that does something else.
void MismatchedOperators(Rank& self) {
  Agree(self.transport, "gather_and_multiply(half[3])");
  const std::string text = ErrorOf([&] {
    if (self.rank == 0) {
      Agree(self.transport, "multiply_and_reduce(half[5, 7])");
    } else {
      Barrier(self.transport);
    }
  });
  EXPECT(Contains(text, "EI0005") &&
         Contains(text, "call number 2: rank 0 multiply_and_reduce(half[5, 7]), rank 1 barrier."));
}

void OperatorsThatDifferAtTheEnd(Rank& self) {
  std::string text(2 * kOperationBytes, 'x');
  Agree(self.transport, text);
  if (self.rank == self.size - 1) text.back() = 'y';
  EXPECT(Contains(ErrorOf([&] { Agree(self.transport, text); }), "call number 2: rank 0 xxx"));
}

void MismatchedCounts(Rank& self) {
  auto* data = self.memory.Allocate<float>(100000);
  const size_t count = self.rank == 0 ? 90000 : 70;
  const std::string text = ErrorOf(
      [&] { AllReduce(self.transport, ElementType::kFloat32, ReduceKind::kSum, 1.0, RegionOf(data, count * 4)); });
  EXPECT(Contains(text, "90000 x float32") && Contains(text, "70 x float32"));
}

// Bytes in one order, to be taken for bytes in another: whether they travel inline or in place, nothing moves.
void MismatchedLayouts(Rank& self) {
  for (const size_t count : {16ul, 90000ul}) {
    // Sets that have a layout in common fit together.
    auto* data = self.memory.Allocate<float>(count);
    for (size_t i = 0; i < count; ++i) data[i] = 1.0f;
    for (const LayoutSet layouts : {kAnyLayout, kContiguous, kChannelsLast, kContiguous | kChannelsLast}) {
      const Region region{data, count * 4, self.rank == 0 ? layouts : layouts | kChannelsLast3d};
      AllReduce(self.transport, ElementType::kFloat32, ReduceKind::kMax, 1.0, region);
    }
  }
  const size_t count = self.size == 2 ? 16 : 90000;
  self.memory.Reset();
  auto* data = self.memory.Allocate<float>(count);
  for (size_t i = 0; i < count; ++i) data[i] = static_cast<float>(self.rank);
  const int last = self.size - 1;
  // Rank 0 has all layouts, the others one each.
  const LayoutSet own = self.rank == 0 ? kAnyLayout : self.rank == last ? kChannelsLast : kContiguous;
  if (self.size == 2) {
    std::vector<Region> outputs(2, Region{data, count * 4, self.rank == 1 ? kChannelsLast : kContiguous});
    const std::string text =
        ErrorOf([&] { AllGather(self.transport, ElementType::kFloat32, {data, count * 4, own}, outputs); });
    EXPECT(
        Contains(text, "rank 1 sends 16 x float32 (channels_last) to rank 0, which expects 16 x float32 (contiguous)"));
  } else {
    const std::string text = ErrorOf(
        [&] { AllReduce(self.transport, ElementType::kFloat32, ReduceKind::kSum, 1.0, {data, count * 4, own}); });
    EXPECT(Contains(text, "EI0005") && Contains(text, "rank 1 all_reduce(90000 x float32, op=SUM), rank 2 ") &&
           Contains(text, "all_reduce(90000 x float32, op=SUM, channels_last)"));
  }
  for (size_t i = 0; i < count; ++i) EXPECT(data[i] == static_cast<float>(self.rank));
}

// The sizes of an uneven call clash between two ranks: all ranks say which, and nobody's memory was touched.
void MismatchedSplits(Rank& self) {
  self.memory.Reset();
  auto* data = self.memory.Allocate<int32_t>(400000);
  for (size_t i = 0; i < 400000; ++i) data[i] = -1;
  std::vector<Region> outputs(static_cast<size_t>(self.size));
  std::vector<Region> inputs(static_cast<size_t>(self.size));
  inputs[0] = RegionOf(data, 4000);
  if (self.rank == 0) {
    for (Region& output : outputs) output = RegionOf(data + 200000, 4000);
    outputs.back().bytes = 4004;
  }
  const std::string text = ErrorOf([&] { AllToAll(self.transport, ElementType::kInt32, inputs, outputs); });
  const std::string last = std::to_string(self.size - 1);
  EXPECT(Contains(text, "EI0005") && Contains(text, "call number 1:"));
  EXPECT(Contains(text, "rank " + last + " sends 1000 x int32 to rank 0, which expects 1001 x int32"));
  for (size_t i = 0; i < 400000; ++i) EXPECT(data[i] == -1);
}

// One rank sends its bytes in the announcement, the other offers memory.
void PayloadAgainstRegions(Rank& self) {
  auto* data = self.memory.Allocate<float>(100000);
  const std::string text = ErrorOf([&] {
    if (self.rank == 0) {
      Reduce(self.transport, ElementType::kFloat32, ReduceKind::kSum, 1.0, 0, RegionOf(data, 64));
    } else {
      ReduceScatter(self.transport, ElementType::kFloat32, ReduceKind::kSum, 1.0,
                    std::vector<Region>(static_cast<size_t>(self.size), RegionOf(data, 80000)), RegionOf(data, 80000));
    }
  });
  EXPECT(Contains(text, "EI0005") && Contains(text, "rank 0 reduce(16 x float32, op=SUM, root=0)"));
}

// A rank is killed while it works on a piece: the others do their part, miss it at the end and say so.
void KilledInACall(Rank& self) {
  const size_t count = 2000000;
  auto* data = self.memory.Allocate<float>(count);
  for (size_t i = 0; i < count; ++i) data[i] = 1.0f;
  Barrier(self.transport);
  if (self.rank == 1) {
    // The same call, up to its first piece.
    const Region region = RegionOf(data, count * 4);
    self.transport.Meet({CallKind::kAllReduce, ElementType::kFloat32, ReduceKind::kSum, -1, count, 1.0}, {},
                        {&region, 1});
    uint32_t piece = 0;
    EXPECT(self.transport.ClaimPiece(1, 1000, &piece));
    kill(getpid(), SIGKILL);
  }
  const auto begin = std::chrono::steady_clock::now();
  const std::string text = ErrorOf(
      [&] { AllReduce(self.transport, ElementType::kFloat32, ReduceKind::kSum, 1.0, RegionOf(data, count * 4)); });
  EXPECT(Contains(text, "EI0002") && Contains(text, "rank 1 (process"));
  EXPECT(Contains(text, "all_reduce(2000000 x float32, op=SUM) number 2"));
  EXPECT(std::chrono::steady_clock::now() - begin < kPromptly);
}

// Killed between two calls that follow each other without a pause, wherever that is.
void KilledAtAnyTime(Rank& self) {
  auto* data = self.memory.Allocate<float>(300000);
  std::thread killer;
  if (self.rank == 1) {
    killer = std::thread([] {
      usleep(30 * 1000);
      kill(getpid(), SIGKILL);
    });
  }
  const std::string text = ErrorOf([&] {
    for (;;) AllReduce(self.transport, ElementType::kFloat32, ReduceKind::kMax, 1.0, RegionOf(data, 1200000));
  });
  EXPECT(Contains(text, "EI0002") && Contains(text, "rank 1 (process"));
}

double CpuSeconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// Waiting costs next to nothing once the first microseconds have passed.
void WaitingSleeps(Rank& self) {
  Barrier(self.transport);
  uint8_t byte = 0;
  const Transfer receive{false, 0, ElementType::kUInt8, RegionOf(&byte, 1)};
  const Transfer send{true, 1, ElementType::kUInt8, RegionOf(&byte, 1)};
  const double begin = CpuSeconds();
  if (self.rank == 0) usleep(1000 * 1000);
  Barrier(self.transport);
  if (self.rank == 0) usleep(1000 * 1000);
  if (self.rank < 2) self.transport.mailboxes().Exchange({self.rank == 0 ? &send : &receive, 1});
  EXPECT(CpuSeconds() - begin < 0.1);  // of two seconds
}

void PeerDies(Rank& self) {
  Barrier(self.transport);
  if (self.rank == self.size - 1) _exit(0);  // without Leave: as a crash
  const auto begin = std::chrono::steady_clock::now();
  const std::string text = ErrorOf([&] { Barrier(self.transport); });
  EXPECT(Contains(text, "EI0002") && Contains(text, "rank " + std::to_string(self.size - 1)));
  EXPECT(std::chrono::steady_clock::now() - begin < kPromptly);
}

void PeerLeaves(Rank& self) {
  Barrier(self.transport);
  if (self.rank == 0) return;  // leaves properly
  EXPECT(Contains(ErrorOf([&] { Barrier(self.transport); }), "rank 0"));
}

void TimesOut(Rank& self) {
  auto* data = self.memory.Allocate<int32_t>(3);
  AllReduce(self.transport, ElementType::kInt32, ReduceKind::kMax, 1.0, RegionOf(data, 12));
  if (self.rank == 0) {
    const std::string text = ErrorOf([&] { Barrier(self.transport); });
    EXPECT(Contains(text, "EI0002") && Contains(text, "HCCL_EXEC_TIMEOUT") &&
           Contains(text, "rank(s) 1; rank 1 (process"));
    EXPECT(Contains(text, "its last collective was number 1, all_reduce(3 x int32, op=MAX)"));
  } else {
    usleep(1500 * 1000);
  }
}

void AbortWakes(Rank& self) {
  if (self.rank != 0) {
    usleep(300 * 1000);
    EXPECT(Contains(ErrorOf([&] { Barrier(self.transport); }), "called off"));
    return;
  }
  std::thread killer([&] {
    usleep(100 * 1000);
    self.transport.Abort("called off");
  });
  const auto begin = std::chrono::steady_clock::now();
  EXPECT(Contains(ErrorOf([&] { Barrier(self.transport); }), "called off"));
  EXPECT(std::chrono::steady_clock::now() - begin < kPromptly);
  killer.join();
}

/// Median seconds of a call on this rank, each begun together.
template <class Call>
double MedianSeconds(Rank& self, int rounds, Call call) {
  std::vector<double> times;
  for (int round = 0; round < rounds; ++round) {
    Barrier(self.transport);
    const auto begin = std::chrono::steady_clock::now();
    call();
    times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void Measure(Rank& self) {
  const auto size = static_cast<size_t>(self.size);
  const size_t most = 64u << 20;
  auto* whole = self.memory.Allocate<std::byte>(most);
  auto* other = self.memory.Allocate<std::byte>(most);
  auto* part = self.memory.Allocate<std::byte>(most / size);
  std::memset(whole, 0, 2 * most + most / size);
  const auto parts = [&](std::byte* base, size_t bytes) {
    std::vector<Region> regions;
    for (size_t i = 0; i < size; ++i) regions.push_back(RegionOf(base + i * (bytes / size), bytes / size));
    return regions;
  };
  const auto report = [&](const char* name, size_t bytes, int rounds, const std::function<void()>& call) {
    const double seconds = MedianSeconds(self, rounds, call);
    if (self.rank == 0) std::printf("%-16s %9zu bytes: median %9.2f us\n", name, bytes, seconds * 1e6);
  };
  for (const size_t bytes : {size_t{1} << 10, size_t{1} << 16, size_t{4} << 20, size_t{16} << 20, most}) {
    const int rounds = bytes > (1u << 20) ? 25 : 2000;
    const ElementType type = ElementType::kFloat32;
    const Region all = RegionOf(whole, bytes);
    const Region mine = RegionOf(part, bytes / size);
    report("all_reduce", bytes, rounds, [&] { AllReduce(self.transport, type, ReduceKind::kSum, 1.0, all); });
    report("all_gather", bytes, rounds, [&] { AllGather(self.transport, type, mine, parts(whole, bytes)); });
    report("reduce_scatter", bytes, rounds,
           [&] { ReduceScatter(self.transport, type, ReduceKind::kSum, 1.0, parts(whole, bytes), mine); });
    report("all_to_all", bytes, rounds,
           [&] { AllToAll(self.transport, type, parts(whole, bytes), parts(other, bytes)); });
    report("broadcast", bytes, rounds, [&] { Broadcast(self.transport, type, 0, all); });
  }
}

void DifferentMachines() {
  ProcessIdentity here = ProcessIdentity::OfThisProcess();
  ProcessIdentity there = here;
  there.boot = "another-kernel";
  there.host = "elsewhere";
  const ProcessIdentity copy = ProcessIdentity::Parse(there.Serialize());
  EXPECT(copy.host == "elsewhere" && copy.pid == here.pid && copy.start_time == here.start_time);
  EXPECT(here.SharesMemoryWith(here) && !here.SharesMemoryWith(copy));
  EXPECT(IsAlive(here));
  here.start_time += 1;  // another process with the same pid
  EXPECT(!IsAlive(here));
  KeyValueStore store;
  store.set = [](const std::string&, const std::string&) {};
  store.find = [&](const std::string&) { return there.Serialize(); };
  const Meeting meeting = Rendezvous(store, {.rank = 0, .size = 2, .limit = std::chrono::seconds(5)});
  EXPECT(meeting.hosts.count() == 2 && meeting.ranks.size() == 1 && meeting.group[1].host == "elsewhere");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "--measure") {
    const int size = argc > 2 ? std::atoi(argv[2]) : 2;
    return RunRanks("measure", size, Measure, {.arena_bytes = 200u << 20}) ? 0 : 1;
  }
  bool passed = true;
  try {
    DifferentMachines();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    passed = false;
  }
  for (const int size : {1, 2, 3, 8}) {
    passed &= RunRanks("all_reduce sizes", size, AllReduceSizes);
    passed &= RunRanks("all_reduce kinds", size, AllReduceKinds);
    passed &= RunRanks("broadcast from every root", size, BroadcastEveryRoot);
    passed &= RunRanks("all_gather, uneven", size, AllGatherUneven);
    passed &= RunRanks("reduce_scatter, all_to_all, scatter, gather", size, ScatterFamily);
    passed &= RunRanks("all_to_all, uneven", size, AllToAllUneven);
    passed &= RunRanks("imports are cached", size, ImportsAreCached);
  }
  for (const int size : {2, 3}) {
    passed &= RunRanks("many calls", size, ManyCalls);
    passed &= RunRanks("mismatched calls", size, MismatchedCalls);
    passed &= RunRanks("mismatched counts", size, MismatchedCounts);
    passed &= RunRanks("mismatched operators", size, MismatchedOperators);
    passed &= RunRanks("operators that differ at the end", size, OperatorsThatDifferAtTheEnd);
    passed &= RunRanks("large buffers", size, LargeBuffers, {.arena_bytes = 160u << 20});
    passed &= RunRanks("mismatched splits", size, MismatchedSplits);
    passed &= RunRanks("mismatched layouts", size, MismatchedLayouts);
    passed &= RunRanks("payload against regions", size, PayloadAgainstRegions);
    passed &= RunRanks("killed in a call", size, KilledInACall, {.killed = 1});
    passed &= RunRanks("killed at any time", size, KilledAtAnyTime, {.killed = 1});
    passed &= RunRanks("waiting sleeps", size, WaitingSleeps);
    passed &= RunRanks("a peer dies", size, PeerDies);
    passed &= RunRanks("a peer leaves", size, PeerLeaves);
  }
  passed &= RunRanks("time-out", 2, TimesOut, {std::chrono::milliseconds(400), 1u << 20});
  passed &= RunRanks("abort wakes the waiter", 2, AbortWakes);
  return passed ? 0 : 1;
}
