/* npu/kernels/top_k.h: the k largest of one row, for kernel files.
 *
 * Descending and stable: equal values keep the lower index first; NaN counts as the largest value and -0 equals 0, as
 * in torch.sort.  Meant for rows of up to a few thousand values and k up to 64; a larger k sorts the row.
 *
 *   float values[256]; int32_t keys[padded_keys(256)];
 *   sort_keys(values, 256, keys);
 *   top_k(keys, 256, 8, NULL, indices);
 */
#ifndef NPU_KERNELS_TOP_K_H_
#define NPU_KERNELS_TOP_K_H_

#include "npu/kernels/rows.h"

namespace npu {
namespace kernels {
namespace {

/* Above this k the row is sorted. */
enum { kMostSelected = 64 };

/* Elements that the keys of `count` values need, on every instruction set. */
inline int64_t padded_keys(int64_t count) { return (count + 15) / 16 * 16; }

/* Integers in the order of the values. */
NPU_LANES_INLINE Ints sort_key(Floats value) {
  Words bits = bits_as<Words>(value + Floats{}); /* -0 + 0 is 0 */
  Ints key = (Ints)bits ^ (((Ints)bits >> 31) & INT32_MAX);
  return (Ints)choose(value != value, 0x7fc00000u + Words{}, (Words)key);
}

/* keys[0 .. padded_keys(count)): the keys of the values, then INT32_MIN, which is below the key of any value. */
inline void sort_keys(const float* values, int64_t count, int32_t* keys) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Ints key = sort_key(load(values + i));
    memcpy(keys + i, &key, sizeof(key));
  }
  if (i < count) {
    Ints key = sort_key(load_first(values + i, count - i));
    memcpy(keys + i, &key, sizeof(key)); /* within the padding */
  }
  for (i = count; i < padded_keys(count); ++i) keys[i] = INT32_MIN;
}

/* Key and index as one number: larger keys first, among equal keys lower indices. */
NPU_LANES_INLINE int64_t ranked(int32_t key, int64_t index) {
  return (int64_t)((uint64_t)(uint32_t)key << 32 | (uint32_t)~(uint32_t)index);
}

/* Puts `one` into the descending list `best` of at most `k`. */
NPU_LANES_INLINE void insert_ranked(int64_t* best, int64_t* size, int64_t k, int64_t one) {
  if (*size == k && one <= best[k - 1]) return;
  int64_t at = *size < k ? (*size)++ : k - 1;
  for (; at > 0 && best[at - 1] < one; --at) best[at] = best[at - 1];
  best[at] = one;
}

/* Sorts numbers so that they descend (heap sort: no memory, no bad case). */
inline void sort_descending(int64_t* numbers, int64_t count) {
  for (int64_t start = count / 2, end = count; end > 1;) {
    int64_t moving; /* sinks from `start` in the heap numbers[0 .. end) whose top is the smallest */
    if (start > 0) {
      moving = numbers[--start];
    } else {
      moving = numbers[--end];
      numbers[end] = numbers[0];
    }
    int64_t hole = start;
    for (int64_t child; (child = 2 * hole + 1) < end; hole = child) {
      if (child + 1 < end && numbers[child + 1] < numbers[child]) ++child;
      if (moving <= numbers[child]) break;
      numbers[hole] = numbers[child];
    }
    numbers[hole] = moving;
  }
}

/* As wide as Floats: GCC takes wider vectors apart into single numbers. */
typedef int64_t Longs __attribute__((vector_size(4 * kLanes)));

/* order[r] = i where exactly r of the `count` different numbers are larger than numbers[i].  Both arrays have room for
 * whole vectors.  Without a branch that depends on the numbers: random ones would be mispredicted. */
NPU_LANES_INLINE void rank_numbers(int64_t* numbers, int64_t count, int32_t* order) {
  const int64_t width = kLanes / 2;
  int64_t padded = count;
  while (padded % kLanes != 0) numbers[padded++] = INT64_MIN;
  for (int64_t i = 0; i < count; i += 2 * width) {
    Longs low = load_bits<Longs>(numbers + i), high = load_bits<Longs>(numbers + i + width);
    Longs above_low{}, above_high{};
    for (int64_t j = 0; j < count; ++j) {
      Longs other = numbers[j] + Longs{};
      above_low -= (Longs)(other > low);
      above_high -= (Longs)(other > high);
    }
    int64_t rank[kLanes];
    memcpy(rank, &above_low, sizeof(above_low));
    memcpy(rank + width, &above_high, sizeof(above_high));
    const int64_t end = count - i < kLanes ? count - i : (int64_t)kLanes;
    for (int64_t lane = 0; lane < end; ++lane) order[rank[lane]] = (int32_t)(i + lane);
  }
}

/* Puts the keys that are at least `bound` into `found`, with their indices; returns their number, or -1 when there are
 * more than `most`. */
inline int64_t collect_keys(const int32_t* keys, int64_t count, int32_t bound, int64_t* found, int64_t most) {
  int32_t places[2 * kMostSelected + kLanes];
  int64_t size = 0;
#if defined(__AVX512F__)
  __m512i place = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#endif
  for (int64_t i = 0; i < count; i += kLanes) {
    uint32_t bits = lane_bits((Mask)(load_bits<Ints>(keys + i) >= bound + Ints{}));
    if (count - i < kLanes) bits &= (1u << (count - i)) - 1;
#if defined(__AVX512F__)
    _mm512_storeu_si512(places + size, _mm512_maskz_compress_epi32((__mmask16)bits, place));
    place = _mm512_add_epi32(place, _mm512_set1_epi32(kLanes));
    size += __builtin_popcount(bits);
#else
    for (; bits != 0; bits &= bits - 1) places[size++] = (int32_t)(i + __builtin_ctz(bits));
#endif
    if (size > most) return -1;
  }
  for (int64_t i = 0; i < size; ++i) found[i] = ranked(keys[places[i]], places[i]);
  return size;
}

/* indices[0 .. k): where the k largest of `count` keys (see sort_keys) stand; k <= count.  `scratch` holds `count`
 * numbers when k > kMostSelected and is not used otherwise. */
inline void top_k(const int32_t* keys, int64_t count, int64_t k, int64_t* scratch, int32_t* indices) {
  if (k <= 0) return;
  if (k > kMostSelected) {
    for (int64_t i = 0; i < count; ++i) scratch[i] = ranked(keys[i], i);
    sort_descending(scratch, count);
    for (int64_t i = 0; i < k; ++i) indices[i] = (int32_t)~(uint32_t)scratch[i];
    return;
  }
  enum { kMostVectors = 8, kMostLanes = kMostVectors * kLanes, kMostFound = 2 * kMostSelected };
  int64_t numbers[(kMostLanes > kMostFound ? kMostLanes : kMostFound) + kLanes];
  int32_t order[(kMostLanes > kMostFound ? kMostLanes : kMostFound) + kLanes];
  /* Largest key of each lane: they are different elements, so the k-th largest of them is not above the k-th largest of
   * the row, and few keys reach it. */
  int32_t bound = INT32_MIN;
  int64_t vectors = 1;
  while (vectors < kMostVectors && vectors * kLanes < 2 * k) vectors *= 2;
  const int64_t lanes = vectors * kLanes;
  if (k <= lanes && count >= 2 * lanes) {
    Ints largest[kMostVectors];
    memcpy(largest, keys, (size_t)lanes * sizeof(int32_t));
    for (int64_t i = lanes; i + lanes <= count; i += lanes) {
      for (int64_t v = 0; v < vectors; ++v) {
        Ints key = load_bits<Ints>(keys + i + v * kLanes);
        largest[v] = (Ints)choose(key > largest[v], (Words)key, (Words)largest[v]);
      }
    }
    int32_t lane[kMostLanes];
    memcpy(lane, largest, (size_t)lanes * sizeof(int32_t));
    for (int64_t i = 0; i < lanes; ++i) numbers[i] = ranked(lane[i], i);
    rank_numbers(numbers, lanes, order);
    bound = lane[order[k - 1]];
  }
  int64_t found = collect_keys(keys, count, bound, numbers, kMostFound - kLanes);
  if (found >= 0) {
    rank_numbers(numbers, found, order);
    for (int64_t i = 0; i < k; ++i) indices[i] = (int32_t)~(uint32_t)numbers[order[i]];
    return;
  }
  /* Many equal keys, or no bound: one after the other. */
  int64_t size = 0;
  for (int64_t i = 0; i < count; i += kLanes) {
    uint32_t bits = lane_bits((Mask)(load_bits<Ints>(keys + i) >= bound + Ints{}));
    if (count - i < kLanes) bits &= (1u << (count - i)) - 1;
    if (bits == 0) continue;
    for (; bits != 0; bits &= bits - 1) {
      int64_t at = i + __builtin_ctz(bits);
      insert_ranked(numbers, &size, k, ranked(keys[at], at));
    }
    int32_t least = (int32_t)(numbers[size - 1] >> 32);
    if (size == k && least > bound) bound = least;
  }
  for (int64_t i = 0; i < k; ++i) indices[i] = (int32_t)~(uint32_t)numbers[i];
}

}  // namespace
}  // namespace kernels
}  // namespace npu

#endif /* NPU_KERNELS_TOP_K_H_ */
