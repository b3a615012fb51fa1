#pragma once
// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011) under the key
// `seed`, and what is computed from its words in vectors.
//
// A call's words come in blocks of 64: word 16 w + l of block b is word w of counter offset / 4 + 16 b + l.  So word i
// of a call depends on (seed, offset, i) only, and vectors need no transposition.
#include <cstdint>

namespace npu::aten::philox {

inline constexpr std::int64_t kBlock = 64;    // words (or values of one word) per block
inline constexpr std::int64_t kChunk = 4096;  // values a task computes at a time: buffers of that size stay in L1

// Words (or values) [begin, begin + count) of a call; `begin` is a multiple of kBlock.
struct Draw {
  std::uint64_t seed;
  std::uint64_t offset;
  std::int64_t begin;
  std::int64_t count;
};

// Storage types of the float kernels below: the index into their rows.
enum FloatType : int { kFloat32 = 0, kBfloat16, kFloat16, kFloatTypes };

// One value per word unless said otherwise.  Compiled per instruction set without fused multiply-add, so that every
// table gives the same bits.
struct Kernels {
  void (*bits)(std::uint32_t* out, const Draw& draw);
  // In [from, to), `from` and `to` being values of the type; as many random bits as the type has.
  void (*uniform[kFloatTypes])(void* out, const Draw& draw, float from, float to);
  // Box-Muller: one pair from two words.
  void (*normal[kFloatTypes])(void* out, const Draw& draw, float mean, float std);
  // scale * (standard exponential), never 0 before scaling.
  void (*exponential[kFloatTypes])(void* out, const Draw& draw, float scale);
  // 1 where the word is <= last, else 0.
  void (*bernoulli)(std::uint8_t* out, const Draw& draw, std::uint32_t last);
  void (*bernoulli_float)(float* out, const Draw& draw, std::uint32_t last);
  // mask = bernoulli(last); out = in * (mask ? scale : 0).  out and in may be one.
  void (*dropout[kFloatTypes])(void* out, std::uint8_t* mask, const void* in, const Draw& draw, std::uint32_t last,
                               float scale);
  // out = in * (mask ? scale : 0)
  void (*scale_by_mask[kFloatTypes])(void* out, const void* in, const std::uint8_t* mask, std::int64_t count,
                                     float scale);
  // floor(word * range / 2^32).  Returns whether the low half of a product was below range: those values come up too
  // often unless some of them are drawn again.
  bool (*below_word)(std::uint32_t* out, const Draw& draw, std::uint32_t range);
  // floor(x * range / 2^64) for 64-bit numbers x of two words each: value i of a block of 32 has words i and 32 + i.
  // `draw` counts values; its begin is a multiple of kBlock.
  void (*below)(std::uint32_t* out, const Draw& draw, std::uint32_t range);
  // The 64-bit numbers x themselves.
  void (*wide)(std::uint64_t* out, const Draw& draw);
};

// The best table for this CPU under NPU_CPU_ISA.
const Kernels& kernels();

}  // namespace npu::aten::philox
