// Collectives over several hosts, between forked processes that are told to be on different ones.
#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "collectives/hierarchical_collectives.h"
#include "collectives/reduction.h"
#include "fake_link.h"
#include "forked_group.h"

using namespace npu::distributed;
using namespace npu::distributed::testing;

namespace {

struct HostRank {
  HierarchicalCollectives& group;
  FileMemory& memory;
  int rank;
  int size;
  const std::vector<int>& places;
};

using Body = std::function<void(HostRank&)>;

std::string NameOf(const std::vector<int>& places) {
  std::string name;
  for (const int place : places) name += std::to_string(place);
  return name;
}

/// Runs `body` on ranks that live on the hosts `places`; true when all returned normally.
bool RunHosts(const char* name, const std::vector<int>& places, const Body& body,
              std::chrono::milliseconds limit = std::chrono::seconds(20)) {
  const auto size = static_cast<int>(places.size());
  SharedStore* shared = SharedStore::Create();
  LinkMesh mesh(size);
  std::vector<pid_t> children;
  for (int rank = 0; rank < size; ++rank) {
    const pid_t pid = fork();
    if (pid != 0) {
      children.push_back(pid);
      continue;
    }
    alarm(60);
    int status = 0;
    try {
      mesh.Keep(rank);
      setenv("NPU_HCCL_HOST_ID", ("host" + std::to_string(places[static_cast<size_t>(rank)])).c_str(), 1);
      FileMemory memory(64u << 20);
      KeyValueStore store = shared->View();
      Meeting meeting = Rendezvous(store, {.rank = rank, .size = size, .limit = std::chrono::seconds(20)});
      HierarchicalCollectives group(std::move(meeting), rank, memory, limit,
                                    std::make_unique<FakeLink>(mesh, rank, limit));
      HostRank self{group, memory, rank, size, places};
      body(self);
      group.Leave();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "[%s %s] rank %d: %s\n", name, NameOf(places).c_str(), rank, error.what());
      status = 1;
    }
    std::fflush(nullptr);
    _exit(status);
  }
  mesh.CloseAll();
  bool passed = true;
  for (const pid_t child : children) {
    int status = 0;
    waitpid(child, &status, 0);
    passed = passed && WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  munmap(shared, sizeof(SharedStore));
  std::printf("%-44s hosts %-6s  %s\n", name, NameOf(places).c_str(), passed ? "ok" : "FAILED");
  std::fflush(stdout);
  return passed;
}

int Value(int rank, size_t i) { return static_cast<int>((i * 5 + static_cast<size_t>(rank) * 3) % 7) - 3; }

double Expected(const HostRank& self, ReduceKind kind, size_t i, bool whole) {
  double result = kind == ReduceKind::kPremulSum ? 0.5 * Value(0, i) : Value(0, i);
  for (int rank = 1; rank < self.size; ++rank) {
    const double value = Value(rank, i);
    if (kind == ReduceKind::kSum || kind == ReduceKind::kAverage) result += value;
    if (kind == ReduceKind::kProduct) result *= value;
    if (kind == ReduceKind::kMin) result = std::min(result, value);
    if (kind == ReduceKind::kMax) result = std::max(result, value);
    if (kind == ReduceKind::kPremulSum) result += 0.5 * (rank + 1) * value;
  }
  if (kind == ReduceKind::kAverage) result /= self.size;
  return whole ? std::trunc(result) : result;
}

constexpr ReduceKind kKinds[] = {ReduceKind::kSum, ReduceKind::kAverage, ReduceKind::kProduct,
                                 ReduceKind::kMin, ReduceKind::kMax,     ReduceKind::kPremulSum};

template <class T>
void Reductions(HostRank& self, ElementType type) {
  const bool whole = !std::is_floating_point_v<T>;
  for (const size_t count : {0ul, 1ul, 100ul, 5003ul, 700001ul}) {
    for (const ReduceKind kind : kKinds) {
      if ((whole && kind == ReduceKind::kPremulSum) || (count > 10000 && kind != ReduceKind::kSum)) continue;
      const double factor = 0.5 * (self.rank + 1);
      const auto expected = [&](size_t i) { return static_cast<T>(Expected(self, kind, i, whole)); };
      self.memory.Reset();
      T* data = self.memory.Allocate<T>(count + 1);
      const auto fill = [&] {
        for (size_t i = 0; i < count; ++i) data[i] = static_cast<T>(Value(self.rank, i));
        data[count] = T(77);
      };
      fill();
      self.group.AllReduce(type, kind, factor, {data, count * sizeof(T)});
      for (size_t i = 0; i < count; ++i) EXPECT(data[i] == expected(i));
      fill();
      const int root = self.size - 1;
      self.group.Reduce(type, kind, factor, root, {data, count * sizeof(T)});
      for (size_t i = 0; i < count; ++i) {
        EXPECT(data[i] == (self.rank == root ? expected(i) : static_cast<T>(Value(self.rank, i))));
      }
      EXPECT(data[count] == T(77));
      fill();
      // Parts of different sizes, some of them empty.
      std::vector<Region> parts;
      size_t begin = 0;
      size_t own_begin = 0;
      for (int rank = 0; rank < self.size; ++rank) {
        const size_t end = rank + 1 == self.size ? count : std::min(count, begin + (rank % 2 == 0 ? count / 3 : 0));
        if (rank == self.rank) own_begin = begin;
        parts.push_back({data + begin, (end - begin) * sizeof(T)});
        begin = end;
      }
      const size_t own = parts[static_cast<size_t>(self.rank)].bytes / sizeof(T);
      T* output = self.memory.Allocate<T>(own + 1);
      self.group.ReduceScatter(type, kind, factor, parts, {output, own * sizeof(T)});
      for (size_t i = 0; i < own; ++i) EXPECT(output[i] == expected(own_begin + i));
    }
  }
}

/// float16 and bfloat16 bits against sums in float32 that are rounded once.
void HalfSums(HostRank& self) {
  const size_t count = 20011;
  auto* data = self.memory.Allocate<uint16_t>(count);
  const auto bits = [](int rank, size_t i) {
    const float value = 1.0f + static_cast<float>((i * 37 + static_cast<size_t>(rank) * 11) % 997) / 64.0f;
    uint32_t word;
    std::memcpy(&word, &value, 4);
    return static_cast<uint16_t>(word >> 16);
  };
  const auto wide = [](uint16_t half) {
    const uint32_t word = static_cast<uint32_t>(half) << 16;
    float value;
    std::memcpy(&value, &word, 4);
    return value;
  };
  for (size_t i = 0; i < count; ++i) data[i] = bits(self.rank, i);
  self.group.AllReduce(ElementType::kBFloat16, ReduceKind::kSum, 1.0, {data, count * 2});
  for (size_t i = 0; i < count; ++i) {
    float sum = 0;  // exact: few bits each
    for (int rank = 0; rank < self.size; ++rank) sum += wide(bits(rank, i));
    uint32_t word;
    std::memcpy(&word, &sum, 4);
    EXPECT(data[i] == static_cast<uint16_t>((word + 0x7fffu + ((word >> 16) & 1u)) >> 16));
  }
}

void AllReductions(HostRank& self) {
  Reductions<float>(self, ElementType::kFloat32);
  Reductions<double>(self, ElementType::kFloat64);
  Reductions<int8_t>(self, ElementType::kInt8);
  Reductions<int16_t>(self, ElementType::kInt16);
  Reductions<int64_t>(self, ElementType::kInt64);
  self.memory.Reset();
  HalfSums(self);
}

void Moves(HostRank& self) {
  const auto size = static_cast<size_t>(self.size);
  for (const size_t count : {0ul, 3ul, 4096ul, 4097ul, 3000017ul}) {
    for (int root = 0; root < self.size; ++root) {
      self.memory.Reset();
      auto* data = self.memory.Allocate<uint8_t>(count + 1);
      for (size_t i = 0; i < count; ++i) data[i] = static_cast<uint8_t>(i * 3 + static_cast<size_t>(self.rank));
      data[count] = 99;
      self.group.Broadcast(ElementType::kUInt8, root, {data, count});
      for (size_t i = 0; i < count; ++i) EXPECT(data[i] == static_cast<uint8_t>(i * 3 + static_cast<size_t>(root)));
      EXPECT(data[count] == 99);
    }
  }
  for (const size_t base : {0ul, 5ul, 2000ul, 300007ul}) {
    self.memory.Reset();
    const auto count = [&](int rank) { return base + static_cast<size_t>(rank) * (base / 2); };
    auto* input = self.memory.Allocate<int32_t>(count(self.rank));
    for (size_t i = 0; i < count(self.rank); ++i) input[i] = static_cast<int32_t>(i) * 10 + self.rank;
    std::vector<Region> outputs;
    for (int rank = 0; rank < self.size; ++rank) {
      outputs.push_back({self.memory.Allocate<int32_t>(count(rank)), count(rank) * 4});
    }
    self.group.AllGather(ElementType::kInt32, {input, count(self.rank) * 4}, outputs);
    for (int rank = 0; rank < self.size; ++rank) {
      const auto* output = static_cast<const int32_t*>(outputs[static_cast<size_t>(rank)].address);
      for (size_t i = 0; i < count(rank); ++i) EXPECT(output[i] == static_cast<int32_t>(i) * 10 + rank);
    }
  }
  const auto fill = [](int source, int target, size_t i) {
    return source * 1000 + target * 100 + static_cast<int>(i % 50);
  };
  const auto count = [](int source, int target) { return static_cast<size_t>(((source + 2 * target) % 4) * 9001); };
  self.memory.Reset();
  std::vector<Region> inputs;
  std::vector<Region> outputs;
  for (int peer = 0; peer < self.size; ++peer) {
    auto* part = self.memory.Allocate<int32_t>(count(self.rank, peer));
    for (size_t i = 0; i < count(self.rank, peer); ++i) part[i] = fill(self.rank, peer, i);
    inputs.push_back({part, count(self.rank, peer) * 4});
    outputs.push_back({self.memory.Allocate<int32_t>(count(peer, self.rank)), count(peer, self.rank) * 4});
  }
  self.group.AllToAll(ElementType::kInt32, inputs, outputs);
  for (int peer = 0; peer < self.size; ++peer) {
    const auto* got = static_cast<const int32_t*>(outputs[static_cast<size_t>(peer)].address);
    for (size_t i = 0; i < count(peer, self.rank); ++i) EXPECT(got[i] == fill(peer, self.rank, i));
  }
  for (int root = 0; root < self.size; ++root) {
    const size_t wanted = count(root, self.rank);
    auto* part = self.memory.Allocate<int32_t>(wanted);
    const std::span<const Region> all(inputs);
    self.group.Scatter(ElementType::kInt32, root, self.rank == root ? all : std::span<const Region>(),
                       {part, wanted * 4});
    for (size_t i = 0; i < wanted; ++i) EXPECT(part[i] == fill(root, self.rank, i));
    std::memset(part, 0, wanted * 4);
    std::vector<Region> room;
    for (size_t peer = 0; self.rank == root && peer < size; ++peer) room.push_back(outputs[peer]);
    self.group.Gather(ElementType::kInt32, root, inputs[static_cast<size_t>(root)], room);
    for (int peer = 0; self.rank == root && peer < self.size; ++peer) {
      const auto* got = static_cast<const int32_t*>(room[static_cast<size_t>(peer)].address);
      for (size_t i = 0; i < count(peer, root); ++i) EXPECT(got[i] == fill(peer, root, i));
    }
    self.group.Barrier();
  }
}

void Messages(HostRank& self) {
  for (const size_t count : {0ul, 5ul, 40001ul}) {
    self.memory.Reset();
    std::vector<Transfer> transfers;
    std::vector<int32_t*> received;
    auto* mine = self.memory.Allocate<int32_t>(count);
    for (size_t i = 0; i < count; ++i) mine[i] = static_cast<int32_t>(i) + self.rank * 100000;
    for (int peer = 0; peer < self.size; ++peer) {
      received.push_back(self.memory.Allocate<int32_t>(count));
      transfers.push_back({false, peer, ElementType::kInt32, {received.back(), count * 4}});
    }
    for (int peer = self.size - 1; peer >= 0; --peer) {
      transfers.push_back({true, peer, ElementType::kInt32, {mine, count * 4}});
    }
    self.group.Exchange(transfers);
    for (int peer = 0; peer < self.size; ++peer) {
      for (size_t i = 0; i < count; ++i) {
        EXPECT(received[static_cast<size_t>(peer)][i] == static_cast<int32_t>(i) + peer * 100000);
      }
    }
  }
}

/// All send before they receive: to everyone, then around a ring.
void SendsFirst(HostRank& self) {
  const auto fill = [](int source, size_t round) { return source * 1000 + static_cast<int>(round); };
  const auto exchange = [&](bool is_send, int peer, int32_t* data, size_t count) {
    const Transfer transfer{is_send, peer, ElementType::kInt32, {data, count * 4}};
    self.group.Exchange({&transfer, 1});
  };
  for (const size_t count : {1ul, 30001ul}) {
    const size_t rounds = count == 1 ? 200 : 3;
    for (int step = 1; step < self.size; ++step) {
      const int target = (self.rank + step) % self.size;
      const int source = (self.rank + self.size - step) % self.size;
      self.memory.Reset();
      auto* data = self.memory.Allocate<int32_t>(count);
      for (size_t round = 0; round < rounds; ++round) {
        std::fill_n(data, count, fill(self.rank, round));
        exchange(true, target, data, count);
      }
      for (size_t round = 0; round < rounds; ++round) {
        exchange(false, source, data, count);
        EXPECT(data[0] == fill(source, round) && data[count - 1] == data[0]);
      }
    }
  }
}

void ManyCalls(HostRank& self) {
  auto* data = self.memory.Allocate<int64_t>(60000);
  for (int round = 0; round < 150; ++round) {
    const size_t count = round % 3 == 0 ? 50000 + static_cast<size_t>(round) : 1 + static_cast<size_t>(round);
    for (size_t i = 0; i < count; i += 97) data[i] = round + self.rank;
    self.group.AllReduce(ElementType::kInt64, ReduceKind::kSum, 1.0, {data, count * 8});
    for (size_t i = 0; i < count; i += 97) {
      EXPECT(data[i] == static_cast<int64_t>(round) * self.size + self.size * (self.size - 1) / 2);
    }
  }
}

void Mismatch(HostRank& self) {
  auto* data = self.memory.Allocate<float>(4096);
  self.group.Barrier();
  const int odd = self.size - 1;
  const std::string text = ErrorOf([&] {
    if (self.rank == odd) {
      self.group.Broadcast(ElementType::kFloat32, 1, {data, 64});
    } else {
      self.group.AllReduce(ElementType::kFloat32, ReduceKind::kSum, 1.0, {data, 64});
    }
  });
  EXPECT(Contains(text, "EI0005") && Contains(text, "call number 2"));
  EXPECT(Contains(text, "rank 0 all_reduce(16 x float32") &&
         Contains(text, "rank " + std::to_string(odd) + " broadcast(16"));
  EXPECT(Contains(ErrorOf([&] { self.group.Barrier(); }), "EI0005"));
}

void MismatchedOperators(HostRank& self) {
  self.group.Agree("gather_and_multiply(half[3])");
  auto* data = self.memory.Allocate<float>(16);
  const int odd = self.size - 1;
  const std::string text = ErrorOf([&] {
    if (self.rank == 0) {
      self.group.Agree("multiply_and_reduce(half[5, 7])");
    } else if (self.rank == odd) {
      self.group.AllReduce(ElementType::kFloat32, ReduceKind::kSum, 1.0, {data, 64});
    } else {
      self.group.Agree("multiply_and_reduce(half[5, 7])");
    }
  });
  EXPECT(Contains(text, "EI0005") && Contains(text, "call number 2: rank 0 multiply_and_reduce(half[5, 7]), rank " +
                                                        std::to_string(odd) + " all_reduce(16 x float32"));
}

void DifferentOperators(HostRank& self) {
  const std::string text = ErrorOf([&] { self.group.Agree("operator " + std::to_string(self.rank)); });
  EXPECT(Contains(text, "call number 1: rank 0 operator 0, rank 1 operator 1."));
}

void MismatchedSizes(HostRank& self) {
  std::vector<Region> inputs;
  std::vector<Region> outputs;
  for (int peer = 0; peer < self.size; ++peer) {
    const size_t sent = self.rank == 1 && peer == 0 ? 12 : 8;
    inputs.push_back({self.memory.Allocate<float>(16), sent * 4});
    outputs.push_back({self.memory.Allocate<float>(16), 32});
  }
  const std::string text = ErrorOf([&] { self.group.AllToAll(ElementType::kFloat32, inputs, outputs); });
  EXPECT(Contains(text, "rank 1 sends 12 x float32 to rank 0, which expects 8 x float32"));
}

/// Ranks of different hosts hold the same tensor in different orders.
void MismatchedLayouts(HostRank& self) {
  const int last = self.size - 1;
  const size_t bytes = self.size == 2 ? 64 : 400000;
  auto* data = self.memory.Allocate<float>(bytes / 4);
  const auto region = [&](LayoutSet layouts) { return Region{data, bytes, layouts}; };
  self.group.AllReduce(ElementType::kFloat32, ReduceKind::kMax, 1.0, region(kChannelsLast));
  self.group.AllReduce(ElementType::kFloat32, ReduceKind::kMax, 1.0, region(self.rank == 0 ? kAnyLayout : kContiguous));
  std::string text;
  if (self.size == 3) {
    std::vector<Region> parts(3, region(self.rank == last ? kChannelsLast : kContiguous));
    text = ErrorOf([&] { self.group.ReduceScatter(ElementType::kFloat32, ReduceKind::kSum, 1.0, parts, parts[0]); });
    EXPECT(Contains(text, "reduce_scatter("));
  } else if (self.size == 4) {
    std::vector<Region> outputs(4, region(kContiguous));
    text = ErrorOf([&] {
      self.group.Gather(ElementType::kFloat32, 0, region(self.rank == last ? kChannelsLast : kContiguous),
                        self.rank == 0 ? std::span<const Region>(outputs) : std::span<const Region>());
    });
    EXPECT(Contains(text,
                    "rank 3 sends 100000 x float32 (channels_last) to rank 0, which expects 100000 x float32 "
                    "(contiguous)"));
  } else {
    text = ErrorOf([&] {
      self.group.Broadcast(ElementType::kFloat32, 0, region(self.rank == last ? kChannelsLast : kContiguous));
    });
    EXPECT(Contains(text, "root=0, channels_last)"));
  }
  EXPECT(Contains(text, "EI0005") && Contains(text, "rank " + std::to_string(last)));
}

void MismatchedMessages(HostRank& self) {
  auto* data = self.memory.Allocate<float>(16);
  const int last = self.size - 1;  // on another host than rank 0
  const Transfer transfer{
      self.rank == last, self.rank == last ? 0 : last, ElementType::kFloat32, {data, self.rank == last ? 12ul : 16ul}};
  if (self.rank == 0) {
    const std::string text = ErrorOf([&] { self.group.Exchange({&transfer, 1}); });
    EXPECT(Contains(text, "EI0005") && Contains(text, "sends 3 x float32, rank 0 receives 4 x float32"));
  } else if (self.rank == last) {
    try {
      self.group.Exchange({&transfer, 1});  // a small message is on its way before the receiver looks at it
    } catch (const CommError&) {
    }
  }
  EXPECT(Contains(ErrorOf([&] { self.group.Barrier(); }), "EI0005"));
}

void PeerDies(HostRank& self) {
  self.group.Barrier();
  if (self.rank == self.size - 1) _exit(0);
  const auto begin = std::chrono::steady_clock::now();
  auto* data = self.memory.Allocate<float>(100000);
  const std::string text =
      ErrorOf([&] { self.group.AllReduce(ElementType::kFloat32, ReduceKind::kSum, 1.0, {data, 400000}); });
  EXPECT(Contains(text, "EI0002") && Contains(text, "rank " + std::to_string(self.size - 1)));
  EXPECT(std::chrono::steady_clock::now() - begin < std::chrono::seconds(5));
}

/// The last rank ends while the others of its host wait for ranks that have not come.
void NeighbourDies(HostRank& self) {
  self.group.Barrier();
  if (self.rank == self.size - 1) {
    // It has announced its part, so its neighbours wait for the other host only.
    std::thread([&] {
      usleep(300 * 1000);
      _exit(0);
    }).detach();
  }
  if (self.places[static_cast<size_t>(self.rank)] != self.places.back()) usleep(1500 * 1000);
  EXPECT(Contains(ErrorOf([&] { self.group.Barrier(); }), "EI0002"));
}

void AbortWakes(HostRank& self) {
  std::thread killer;
  if (self.rank == 0) {
    killer = std::thread([&] {
      usleep(200 * 1000);
      self.group.Abort("called off");
    });
    killer.join();
  }
  EXPECT(Contains(ErrorOf([&] { self.group.Barrier(); }), "called off"));
}

void TimesOut(HostRank& self) {
  if (self.rank == self.size - 1) {
    usleep(2500 * 1000);
    return;
  }
  const std::string text = ErrorOf([&] { self.group.Barrier(); });
  EXPECT(Contains(text, "EI0002") && Contains(text, "HCCL_EXEC_TIMEOUT"));
}

void HostsAreGrouped() {
  std::vector<ProcessIdentity> ranks(5, ProcessIdentity::OfThisProcess());
  ranks[1].host_id = "other";
  ranks[3].boot = "another-kernel";
  ranks[4].host_id = "other";
  const HostMap map = HostMap::Of(ranks);
  EXPECT((map.members == std::vector<std::vector<int>>{{0, 2}, {1, 4}, {3}}));
  EXPECT((map.host_of == std::vector<int>{0, 1, 0, 2, 1}) && (map.index_of == std::vector<int>{0, 0, 1, 0, 1}));
  EXPECT(map.widest() == 2 && map.Pick(2, 1) == 3 && map.Pick(1, 3) == 4);
  setenv("NPU_HCCL_HOST_ID", "two words", 1);
  EXPECT(Contains(ErrorOf([] { ProcessIdentity::OfThisProcess(); }), "NPU_HCCL_HOST_ID"));
  unsetenv("NPU_HCCL_HOST_ID");
}

}  // namespace

int main() {
  bool passed = true;
  try {
    HostsAreGrouped();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    passed = false;
  }
  for (const std::vector<int>& places :
       std::vector<std::vector<int>>{{0, 1}, {0, 0, 1, 1}, {0, 1, 0}, {0, 0, 1, 0, 2}}) {
    passed &= RunHosts("reductions", places, AllReductions);
    passed &= RunHosts("moves", places, Moves);
    passed &= RunHosts("messages", places, Messages);
    passed &= RunHosts("sends before receives", places, SendsFirst);
    passed &= RunHosts("many calls", places, ManyCalls);
    passed &= RunHosts("mismatched calls", places, Mismatch);
    passed &= RunHosts("mismatched operators", places, MismatchedOperators);
    passed &= RunHosts("different operators", places, DifferentOperators);
    passed &= RunHosts("mismatched sizes", places, MismatchedSizes);
    passed &= RunHosts("mismatched layouts", places, MismatchedLayouts);
    passed &= RunHosts("a peer dies", places, PeerDies);
    passed &= RunHosts("abort reaches everyone", places, AbortWakes);
  }
  passed &= RunHosts("mismatched messages", {0, 1}, MismatchedMessages);
  passed &= RunHosts("mismatched messages", {0, 0, 1, 1}, MismatchedMessages);
  passed &= RunHosts("a neighbour dies", {0, 0, 1, 1}, NeighbourDies);
  passed &= RunHosts("time-out", {0, 0, 1, 1}, TimesOut, std::chrono::milliseconds(800));
  passed &= RunHosts("time-out", {0, 1}, TimesOut, std::chrono::milliseconds(800));
  return passed ? 0 : 1;
}
