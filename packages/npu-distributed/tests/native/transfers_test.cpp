// Messages between forked processes.  Exit status 0 when everything passed.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>
#include <random>

#include "collectives/algorithms.h"
#include "forked_group.h"

using namespace npu::distributed;
using namespace npu::distributed::testing;

namespace {

constexpr size_t kShort = 256;     // travels in the control page
constexpr size_t kLong = 1 << 20;  // read from the sender's memory
constexpr ElementType kBytes = ElementType::kUInt8;

void Fill(uint8_t* data, size_t bytes, int from, int to, int round) {
  for (size_t i = 0; i < bytes; ++i)
    data[i] = static_cast<uint8_t>(i * 7 + static_cast<size_t>(from * 31 + to * 17 + round));
}

bool Holds(const uint8_t* data, size_t bytes, int from, int to, int round) {
  for (size_t i = 0; i < bytes; ++i) {
    if (data[i] != static_cast<uint8_t>(i * 7 + static_cast<size_t>(from * 31 + to * 17 + round))) return false;
  }
  return true;
}

Transfer Send(int peer, void* data, size_t bytes, ElementType element = kBytes) {
  return {true, peer, element, {data, bytes}};
}
Transfer Receive(int peer, void* data, size_t bytes, ElementType element = kBytes) {
  return {false, peer, element, {data, bytes}};
}

void Exchange(Rank& self, std::vector<Transfer> transfers) { self.transport.mailboxes().Exchange(transfers); }

void PingPong(Rank& self) {
  if (self.rank > 1) return;
  int round = 0;
  for (const size_t bytes : {0ul, 1ul, 100ul, kInlineBytes, kInlineBytes + 1, 100001ul, 3000017ul}) {
    for (int repeat = 0; repeat < 20; ++repeat, ++round) {
      self.memory.Reset();
      uint8_t* data = self.memory.Allocate<uint8_t>(bytes + 1);
      data[bytes] = 99;
      const int peer = 1 - self.rank;
      if (self.rank == 0) {
        Fill(data, bytes, 0, 1, round);
        Exchange(self, {Send(peer, data, bytes)});
        std::memset(data, 0, bytes);
        Exchange(self, {Receive(peer, data, bytes)});
        EXPECT(Holds(data, bytes, 1, 0, round));
      } else {
        Exchange(self, {Receive(peer, data, bytes)});
        EXPECT(Holds(data, bytes, 0, 1, round));
        Fill(data, bytes, 1, 0, round);
        Exchange(self, {Send(peer, data, bytes)});
      }
      EXPECT(data[bytes] == 99);
    }
  }
}

// Every rank with every rank (itself too), several messages each of all sizes, sends and receives in any order.
void AllPairsInAnyOrder(Rank& self) {
  std::mt19937 random(static_cast<unsigned>(self.rank) + 1);
  for (int round = 0; round < 6; ++round) {
    self.memory.Reset();
    const size_t sizes[] = {0, kShort, 60001 + static_cast<size_t>(round), 5};
    struct Expected {
      uint8_t* data;
      size_t bytes;
      int from;
      int tag;
    };
    std::vector<std::vector<Transfer>> queues;  // one per ordered pair: their order must stay
    std::vector<Expected> expected;
    for (int peer = 0; peer < self.size; ++peer) {
      std::vector<Transfer> sends;
      std::vector<Transfer> receives;
      for (int message = 0; message < 4; ++message) {
        const size_t bytes = sizes[message];
        const int tag = round * 4 + message;
        uint8_t* out = self.memory.Allocate<uint8_t>(bytes);
        uint8_t* in = self.memory.Allocate<uint8_t>(bytes);
        Fill(out, bytes, self.rank, peer, tag);
        sends.push_back(Send(peer, out, bytes));
        receives.push_back(Receive(peer, in, bytes));
        expected.push_back({in, bytes, peer, tag});
      }
      queues.push_back(sends);
      queues.push_back(receives);
    }
    std::vector<Transfer> transfers;
    std::vector<size_t> next(queues.size(), 0);
    while (transfers.size() < queues.size() * 4) {
      const size_t pick = random() % queues.size();
      if (next[pick] < 4) transfers.push_back(queues[pick][next[pick]++]);
    }
    self.transport.mailboxes().Exchange(transfers);
    for (const Expected& one : expected) EXPECT(Holds(one.data, one.bytes, one.from, self.rank, one.tag));
  }
}

// Everybody sends before it receives: long messages around a ring, and between two ranks.
void SendsBeforeReceives(Rank& self) {
  const auto pass = [&](int to, int from, int round) {
    self.memory.Reset();
    uint8_t* out = self.memory.Allocate<uint8_t>(kLong);
    uint8_t* in = self.memory.Allocate<uint8_t>(kLong);
    Fill(out, kLong, self.rank, to, round);
    Exchange(self, {Send(to, out, kLong)});
    std::memset(out, 0, kLong);  // the buffer belongs to the sender again
    Exchange(self, {Receive(from, in, kLong)});
    EXPECT(Holds(in, kLong, from, self.rank, round));
  };
  for (int round = 0; round < 5; ++round) {
    pass((self.rank + 1) % self.size, (self.rank + self.size - 1) % self.size, round);
    if ((self.rank ^ 1) < self.size) pass(self.rank ^ 1, self.rank ^ 1, round);
  }
}

// More short messages than a ring holds, before the first receive on either side.
void ManyShortSends(Rank& self) {
  if (self.rank > 1) return;
  constexpr int kMessages = 100;
  uint8_t* data = self.memory.Allocate<uint8_t>(kShort);
  for (int i = 0; i < kMessages; ++i) {
    Fill(data, kShort, self.rank, 1 - self.rank, i);
    Exchange(self, {Send(1 - self.rank, data, kShort)});
  }
  for (int i = 0; i < kMessages; ++i) {
    Exchange(self, {Receive(1 - self.rank, data, kShort)});
    EXPECT(Holds(data, kShort, 1 - self.rank, self.rank, i));
  }
}

// A short send needs no receiver while the ring has room; a receiver that comes late finds it.
void ShortSendsEndAtOnce(Rank& self) {
  uint8_t* data = self.memory.Allocate<uint8_t>(kShort);
  if (self.rank == 0) {
    for (int i = 0; i < static_cast<int>(Mailbox::kSlots); ++i) {
      Fill(data, kShort, 0, 1, i);
      Exchange(self, {Send(1, data, kShort)});
    }
  }
  Barrier(self.transport);  // rank 0 came here without any receive
  if (self.rank == 1) {
    for (int i = 0; i < static_cast<int>(Mailbox::kSlots); ++i) {
      Exchange(self, {Receive(0, data, kShort)});
      EXPECT(Holds(data, kShort, 0, 1, i));
    }
  }
}

void BesideCollectives(Rank& self) {
  auto* data = self.memory.Allocate<uint8_t>(2 * kLong);
  auto* numbers = self.memory.Allocate<int64_t>(50000);
  std::string failure;
  std::thread messages([&] {
    try {
      for (int round = 0; round < 60; ++round) {
        const size_t bytes = round % 3 == 0 ? kShort : 40000 + static_cast<size_t>(round);
        const int to = (self.rank + 1) % self.size;
        const int from = (self.rank + self.size - 1) % self.size;
        Fill(data, bytes, self.rank, to, round);
        Exchange(self, {Receive(from, data + kLong, bytes), Send(to, data, bytes)});
        EXPECT(Holds(data + kLong, bytes, from, self.rank, round));
      }
    } catch (const std::exception& error) {
      failure = error.what();
    }
  });
  for (int round = 0; round < 60; ++round) {
    const size_t count = round % 2 == 0 ? 50000 : 10;
    for (size_t i = 0; i < count; ++i) numbers[i] = round + self.rank;
    AllReduce(self.transport, ElementType::kInt64, ReduceKind::kSum, 1.0, {numbers, count * 8});
    for (size_t i = 0; i < count; ++i) {
      EXPECT(numbers[i] == static_cast<int64_t>(round) * self.size + self.size * (self.size - 1) / 2);
    }
  }
  messages.join();
  if (!failure.empty()) throw Failure(failure);
}

// One thread per peer, as streams of single pairs would do it.
void ThreadsPerPeer(Rank& self) {
  std::vector<std::thread> threads;
  std::vector<std::string> failures(static_cast<size_t>(self.size));
  for (int peer = 0; peer < self.size; ++peer) {
    auto* out = self.memory.Allocate<uint8_t>(kLong);
    auto* in = self.memory.Allocate<uint8_t>(kLong);
    if (peer == self.rank) continue;
    threads.emplace_back([&, peer, out, in] {
      try {
        for (int round = 0; round < 30; ++round) {
          const size_t bytes = round % 2 == 0 ? kShort : 30000;
          Fill(out, bytes, self.rank, peer, round);
          if (self.rank < peer) {
            Exchange(self, {Send(peer, out, bytes)});
            Exchange(self, {Receive(peer, in, bytes)});
          } else {
            Exchange(self, {Receive(peer, in, bytes)});
            Exchange(self, {Send(peer, out, bytes)});
          }
          EXPECT(Holds(in, bytes, peer, self.rank, round));
        }
      } catch (const std::exception& error) {
        failures[static_cast<size_t>(peer)] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& failure : failures) EXPECT(failure.empty());
}

void ToItself(Rank& self) {
  auto* out = self.memory.Allocate<uint8_t>(kLong);
  auto* in = self.memory.Allocate<uint8_t>(kLong);
  Fill(out, kLong, 1, 2, 3);
  Exchange(self, {Receive(self.rank, in, kLong), Send(self.rank, out, kLong)});
  EXPECT(Holds(in, kLong, 1, 2, 3));
  std::memset(in, 0, kLong);
  Exchange(self, {Send(self.rank, out, kLong)});
  std::memset(out, 0, kLong);
  Exchange(self, {Receive(self.rank, in, kLong)});
  EXPECT(Holds(in, kLong, 1, 2, 3));
  const std::string text = ErrorOf([&] { Exchange(self, {Receive(self.rank, in, 5)}); });
  EXPECT(Contains(text, "this rank itself"));
}

void SizesDiffer(Rank& self) {
  auto* data = self.memory.Allocate<uint8_t>(kLong);
  const std::string text = ErrorOf([&] {
    if (self.rank == 0) {
      Exchange(self, {Send(1, data, 64)});
      Exchange(self, {Send(1, data, 400000, ElementType::kFloat32)});
    } else {
      Exchange(self, {Receive(0, data, 64)});
      Exchange(self, {Receive(0, data, 400004, ElementType::kFloat32)});
    }
  });
  EXPECT(Contains(text, "EI0005") && Contains(text, "message number 2 from rank 0 to rank 1"));
  EXPECT(Contains(text, "rank 0 sends 100000 x float32") && Contains(text, "rank 1 receives 100001 x float32"));
}

void TypesDiffer(Rank& self) {
  auto* data = self.memory.Allocate<uint8_t>(kLong);
  const std::string text = ErrorOf([&] {
    if (self.rank == 0) {
      Exchange(self, {Send(1, data, 40, ElementType::kInt32)});
      Exchange(self, {Receive(1, data, 40)});  // the short send has ended: the next call reports it
    } else {
      Exchange(self, {Receive(0, data, 40, ElementType::kFloat32)});
    }
  });
  EXPECT(Contains(text, "EI0005") && Contains(text, "10 x int32") && Contains(text, "10 x float32"));
}

void RankDies(Rank& self) {
  auto* data = self.memory.Allocate<uint8_t>(kLong);
  Barrier(self.transport);
  if (self.rank == 1) kill(getpid(), SIGKILL);
  const auto begin = std::chrono::steady_clock::now();
  const std::string text = ErrorOf([&] {
    if (self.rank == 0) {
      Exchange(self, {Send(1, data, kLong)});
    } else {
      Exchange(self, {Receive(1, data, kLong)});
    }
  });
  EXPECT(Contains(text, "EI0002") && Contains(text, "rank 1 (process") && Contains(text, "number 1"));
  EXPECT(std::chrono::steady_clock::now() - begin < kPromptly);
}

// What was sent before the end of the sender is received; then its end is told.
void SenderLeaves(Rank& self) {
  auto* data = self.memory.Allocate<uint8_t>(kLong);
  if (self.rank == 0) {
    Fill(data, kShort, 0, 1, 7);
    Exchange(self, {Send(1, data, kShort)});
    return;
  }
  if (self.rank > 1) return;
  usleep(50 * 1000);
  Exchange(self, {Receive(0, data, kShort)});
  EXPECT(Holds(data, kShort, 0, 1, 7));
  EXPECT(Contains(ErrorOf([&] { Exchange(self, {Receive(0, data, kShort)}); }), "has destroyed the process group"));
}

void TimesOut(Rank& self) {
  auto* data = self.memory.Allocate<uint8_t>(kLong);
  Barrier(self.transport);
  if (self.rank == 0) {
    Exchange(self, {Send(1, data, kShort)});
    const std::string text = ErrorOf([&] { Exchange(self, {Send(1, data, kLong), Receive(1, data, 12)}); });
    EXPECT(Contains(text, "EI0002") && Contains(text, "HCCL_EXEC_TIMEOUT") &&
           Contains(text, "send number 2 to rank 1 (1048576 x uint8)") &&
           Contains(text, "receive number 1 from rank 1 (12 x uint8)") && Contains(text, "number 1, barrier"));
  } else {
    Exchange(self, {Receive(0, data, kShort)});
    const auto seconds = std::chrono::seconds(20);
    for (const auto begin = std::chrono::steady_clock::now(); std::chrono::steady_clock::now() - begin < seconds;) {
      usleep(20 * 1000);
      try {
        self.transport.mailboxes().Exchange({});
      } catch (const CommError& error) {
        EXPECT(Contains(error.what(), "(reported by rank 0)"));
        return;
      }
    }
    throw Failure("rank 0 reported no time-out");
  }
}

size_t CountEntries(const char* folder) {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder)) ++count;
  return count;
}

size_t CountLines(const char* path) {
  std::ifstream file(path);
  return static_cast<size_t>(std::count(std::istreambuf_iterator<char>(file), {}, '\n'));
}

// Buffers of ever new places and sizes, in messages and in collectives.
void ManyBuffers(Rank& self, int rounds) {
  std::mt19937 random(7);  // the same on every rank
  auto* arena = self.memory.Allocate<uint8_t>(8 * kLong);
  size_t descriptors = 0;
  size_t mappings = 0;
  for (int round = 0; round < rounds; ++round) {
    const size_t bytes = kInlineBytes + 1 + random() % 20000;
    uint8_t* data = arena + random() % (7 * kLong) / 64 * 64;
    if (random() % 2 == 0) {
      AllReduce(self.transport, kBytes, ReduceKind::kMax, 1.0, {data, bytes});
    } else if (self.rank < 2) {
      Exchange(self, {self.rank == 0 ? Send(1, data, bytes) : Receive(0, data, bytes)});
    }
    EXPECT(self.memory.imports - self.memory.closes <= static_cast<int>(4 * kMostRecentHandles * self.size));
    if (round == rounds / 2) {
      descriptors = CountEntries("/proc/self/fd");
      mappings = CountLines("/proc/self/maps");
    }
  }
  EXPECT(self.memory.imports > static_cast<int>(rounds / 4) || self.rank > 1);
  EXPECT(CountEntries("/proc/self/fd") == descriptors);
  EXPECT(CountLines("/proc/self/maps") < mappings + 2 * kMostRecentHandles);
}

void Measure(Rank& self) {
  const size_t bytes = 64u << 20;
  auto* data = self.memory.Allocate<uint8_t>(bytes);
  std::memset(data, 1, bytes);
  for (const auto& [size, rounds] : {std::pair<size_t, int>{bytes, 20}, {1024, 20000}}) {
    Barrier(self.transport);
    const auto begin = std::chrono::steady_clock::now();
    for (int round = 0; round < rounds; ++round) {
      if (self.rank == round % 2) {
        Exchange(self, {Send(1 - self.rank, data, size)});
      } else {
        Exchange(self, {Receive(1 - self.rank, data, size)});
      }
    }
    const double each = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / rounds;
    if (self.rank == 0) {
      std::printf("send/receive %zu bytes: %.2f us, %.1f GB/s\n", size, each * 1e6,
                  static_cast<double>(size) / each / 1e9);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "--measure") {
    return RunRanks("measure", 2, Measure, {std::chrono::seconds(20), 128u << 20}) ? 0 : 1;
  }
  if (argc > 1 && std::string(argv[1]) == "--soak") {
    return RunRanks("many buffers", 3, [](Rank& self) { ManyBuffers(self, 20000); }) ? 0 : 1;
  }
  bool passed = true;
  for (const int size : {2, 3, 4, 8}) {
    passed &= RunRanks("all pairs in any order", size, AllPairsInAnyOrder);
    passed &= RunRanks("sends before receives", size, SendsBeforeReceives);
    passed &= RunRanks("beside collectives", size, BesideCollectives);
  }
  for (const int size : {2, 3}) {
    passed &= RunRanks("ping-pong", size, PingPong);
    passed &= RunRanks("a thread per peer", size, ThreadsPerPeer);
    passed &= RunRanks("a rank dies", size, RankDies, {.killed = 1});
    passed &= RunRanks("a sender leaves", size, SenderLeaves);
  }
  passed &= RunRanks("more short sends than slots", 2, ManyShortSends);
  passed &= RunRanks("short sends end at once", 2, ShortSendsEndAtOnce);
  passed &= RunRanks("to itself", 1, ToItself);
  passed &= RunRanks("sizes differ", 2, SizesDiffer);
  passed &= RunRanks("types differ", 2, TypesDiffer);
  passed &= RunRanks("time-out", 2, TimesOut, {std::chrono::milliseconds(400), 4u << 20});
  passed &= RunRanks("many buffers", 2, [](Rank& self) { ManyBuffers(self, 5000); });
  return passed ? 0 : 1;
}
