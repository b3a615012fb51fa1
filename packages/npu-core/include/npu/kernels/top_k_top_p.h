/* npu/kernels/top_k_top_p.h: where a row has to be cut, without sorting it, for kernel files (see lanes.h).
 *
 * Both questions of sampling, "which is the k-th largest value" and "which smallest values have a probability of no
 * more than 1 - p together", ask for the place in the ascending order at which a running sum of weights exceeds a
 * limit. find_cut() finds it by distribution: it sums the weights below seven thresholds in one pass, keeps the values
 * between the two that enclose the place, and so on; some thousand values that are left are sorted.  The weights must
 * depend on the value alone.  For -0 and +0 is no order: give it +0 only (load_ordered).
 *
 * The sums are in double, from float32 sums of 32 vectors.  So a running sum here and one that is formed value by value
 * in float32 may differ by float32 rounding, and a value right at the limit may fall on the other side.
 */
#ifndef NPU_KERNELS_TOP_K_TOP_P_H_
#define NPU_KERNELS_TOP_K_TOP_P_H_

#include "npu/kernels/min_max_rows.h"

namespace npu {
namespace kernels {
namespace {

enum {
  kThresholds = 7,
  kSortedValues = 2048, /* so many are sorted, more are distributed */
  kValuesSlack = 64     /* floats that functions here may write behind the end of an array */
};

/* Values below `value` come first, then `ties` of those that equal it, then the sum exceeds the limit. */
struct Cut {
  float value;
  int64_t ties;
};

/* Values with +0 for -0; lanes beyond `count` are NaN, which is in no interval. */
template <class T>
NPU_LANES_INLINE Floats load_ordered(const T* from, int64_t count) {
  Floats value = load_some(from, count) + broadcast(0.0f);
  return count == kLanes ? value : first_lanes(value, count, NAN);
}

/* sum + weight in the lanes where value < threshold */
NPU_LANES_INLINE Floats add_below(Floats sum, Floats weight, Floats value, Floats threshold) {
#if defined(__AVX512F__)
  __mmask16 below = _mm512_cmp_ps_mask((__m512)value, (__m512)threshold, _CMP_LT_OQ);
  return (Floats)_mm512_mask_add_ps((__m512)sum, below, (__m512)sum, (__m512)weight);
#else
  return sum + choose(value < threshold, weight, Floats{});
#endif
}

/* Appends the lanes of `value` that `bits` names; may write kLanes floats. */
NPU_LANES_INLINE int64_t append(float* to, Floats value, uint32_t bits) {
#if defined(__AVX512F__)
  /* In a register first: compressing into memory is microcode on some CPUs. */
  _mm512_storeu_ps(to, _mm512_maskz_compress_ps((__mmask16)bits, (__m512)value));
  return __builtin_popcount(bits);
#else
  int64_t n = 0;
  for (; bits != 0; bits &= bits - 1) to[n++] = value[__builtin_ctz(bits)];
  return n;
#endif
}

/* Copies what lies in [low, high) to `to` and returns how much that is; high may be +infinity, which then is included.
 * In place is allowed. */
template <class T>
int64_t collect(const T* from, int64_t n, float low, float high, float* to) {
  const Floats least = broadcast(low), bound = broadcast(high);
  const bool open = high == INFINITY;
  int64_t found = 0;
  int64_t* count_found = &found;
  each_lanes(n, [=](int64_t i, int64_t count) NPU_LANES_BODY {
    Floats value = load_ordered(from + i, count);
    Mask inside = value >= least;
    if (!open) inside &= value < bound;
    uint32_t bits = lane_bits(inside);
    if (bits != 0) *count_found += append(to + *count_found, value, bits);
  });
  return found;
}

/* sums[j] = sum of weight(v) over v < thresholds[j]; returns the sum over all. */
template <class T, class Weight>
double sum_below(const T* from, int64_t n, const float* thresholds, double* sums, Weight weight) {
  const int64_t kFlush = 32 * kLanes;
  double total = 0;
  for (int j = 0; j < kThresholds; ++j) sums[j] = 0;
  for (int64_t begin = 0; begin < n; begin += kFlush) {
    Floats sum[kThresholds], all{};
    for (int j = 0; j < kThresholds; ++j) sum[j] = Floats{};
    int64_t end = n - begin < kFlush ? n : begin + kFlush;
    for (int64_t i = begin; i < end; i += kLanes) {
      int64_t count = end - i < kLanes ? end - i : (int64_t)kLanes;
      Floats value = load_ordered(from + i, count);
      Floats some = weight(value);
      some = choose(value == value, some, Floats{});
      all += some;
      for (int j = 0; j < kThresholds; ++j) sum[j] = add_below(sum[j], some, value, broadcast(thresholds[j]));
    }
    for (int j = 0; j < kThresholds; ++j) sums[j] += sum_lanes(sum[j]);
    total += sum_lanes(all);
  }
  return total;
}

/* ---- sorting -------------------------------------------------------------------------------------------------- */

/* An integer that orders as the float does (no NaN, no -0). */
NPU_LANES_INLINE uint32_t ordered_bits(float value) {
  uint32_t word = bits_as<uint32_t>(value);
  return (word & 0x80000000u) != 0 ? ~word : word | 0x80000000u;
}

NPU_LANES_INLINE float from_ordered_bits(uint32_t key) {
  return bits_as<float>((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

/* Ascending; n <= kSortedValues.  By insertion, or by three digits of 11 bits. */
void sort_values(float* values, int64_t n) {
  if (n <= 48) {
    for (int64_t i = 1; i < n; ++i) {
      float moving = values[i];
      int64_t to = i;
      for (; to > 0 && values[to - 1] > moving; --to) values[to] = values[to - 1];
      values[to] = moving;
    }
    return;
  }
  uint32_t keys[2][kSortedValues];
  uint16_t places[3][2048];
  memset(places, 0, sizeof(places));
  for (int64_t i = 0; i < n; ++i) {
    uint32_t key = keys[0][i] = ordered_bits(values[i]);
    ++places[0][key & 2047], ++places[1][key >> 11 & 2047], ++places[2][key >> 22];
  }
  for (int digit = 0; digit < 3; ++digit) {
    uint16_t next = 0;
    for (int value = 0; value < 2048; ++value) {
      uint16_t count = places[digit][value];
      places[digit][value] = next;
      next = (uint16_t)(next + count);
    }
    const uint32_t* from = keys[digit & 1];
    uint32_t* to = keys[(digit & 1) ^ 1];
    for (int64_t i = 0; i < n; ++i) to[places[digit][from[i] >> (11 * digit) & 2047]++] = from[i];
  }
  for (int64_t i = 0; i < n; ++i) values[i] = from_ordered_bits(keys[1][i]);
}

/* ---- the cut -------------------------------------------------------------------------------------------------- */

/* Seven thresholds in (least, largest], not decreasing: evenly by value, or by rank among all floats, which halves the
 * interval whatever the values are. */
void split_interval(float least, float largest, bool by_value, float* thresholds) {
  uint32_t low = ordered_bits(least), high = ordered_bits(largest);
  for (int j = 0; j < kThresholds; ++j) {
    float part = (float)(j + 1) / (kThresholds + 1);
    float value = least * (1 - part) + largest * part;
    if (!by_value) {
      value = from_ordered_bits(low + (uint32_t)(((uint64_t)(high - low) * (uint64_t)(j + 1) + kThresholds) >> 3));
    }
    thresholds[j] = value > least && value <= largest ? value : largest;
  }
  for (int j = kThresholds - 1; j > 0; --j) {
    if (thresholds[j - 1] > thresholds[j]) thresholds[j - 1] = thresholds[j];
  }
}

/* The first value, in ascending order, with which the sum of weights exceeds the limit: exceeds(sum) says so.  When all
 * `n` values together do not, the cut is at `end`, before all values from there on.  `before` is the sum of what lies
 * below values[0..n), which is overwritten and has kValuesSlack floats behind it. */
template <class Weight, class Exceeds>
Cut find_cut(float* values, int64_t n, double before, float end, Weight weight, Exceeds exceeds) {
  for (int level = 0; n > kSortedValues; ++level) {
    float least, largest;
    min_max_row(
        n, [=](int64_t i, int64_t count) NPU_LANES_BODY { return load_some(values + i, count); }, &least, &largest);
    if (least == largest) break;
    float thresholds[kThresholds];
    double sums[kThresholds];
    bool by_value = (level & 1) == 0 && least > -INFINITY && largest < INFINITY;
    split_interval(least, largest, by_value, thresholds);
    sum_below(values, n, thresholds, sums, weight);
    int above = 0;
    while (above < kThresholds && !exceeds(before + sums[above])) ++above;
    float low = -INFINITY, high = INFINITY;
    if (above > 0) low = thresholds[above - 1], before += sums[above - 1];
    if (above < kThresholds) high = end = thresholds[above];
    n = collect(values, n, low, high, values);
  }
  if (n > kSortedValues) { /* all are the same */
    double one = weight(broadcast(values[0]))[0];
    int64_t low = 0, high = n; /* how many come before the sum exceeds the limit */
    while (low < high) {
      int64_t middle = low + (high - low) / 2;
      if (exceeds(before + (double)(middle + 1) * one)) high = middle;
      else low = middle + 1;
    }
    return low < n ? Cut{values[0], low} : Cut{end, 0};
  }
  sort_values(values, n);
  double sum = before;
  int64_t ties = 0;
  for (int64_t i = 0; i < n; i += kLanes) {
    float lane[kLanes];
    int64_t count = n - i < kLanes ? n - i : (int64_t)kLanes;
    Floats some = weight(load_some(values + i, count));
    memcpy(lane, &some, sizeof(lane));
    for (int64_t l = 0; l < count; ++l) {
      ties = i + l > 0 && values[i + l] == values[i + l - 1] ? ties + 1 : 0;
      sum += lane[l];
      if (exceeds(sum)) return {values[i + l], ties};
    }
  }
  return {end, 0};
}

/* ---- the k-th largest ------------------------------------------------------------------------------------------ */

enum { kBlock = 64 };

/* maxima[b] = largest of the values [kBlock * b, kBlock * (b + 1)), skipping NaN, of NaN only -infinity.  Returns how
 * many values are NaN. */
template <class T>
int64_t block_maxima(const T* from, int64_t n, float* maxima) {
  int64_t numbers = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    int64_t end = n - begin < kBlock ? n : begin + kBlock;
    Floats largest = broadcast(-INFINITY);
    for (int64_t i = begin; i < end; i += kLanes) {
      Floats value = load_ordered(from + i, end - i < kLanes ? end - i : (int64_t)kLanes);
      numbers += __builtin_popcount(lane_bits(value == value));
      largest = maximum(largest, value);
    }
    maxima[begin / kBlock] = max_lanes(largest);
  }
  return n - numbers;
}

/* As collect() from `low` on, over the blocks that can have such values. */
template <class T>
int64_t collect_from(const T* from, int64_t n, const float* maxima, float low, float* to) {
  int64_t found = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    if (maxima[begin / kBlock] < low) continue;
    found += collect(from + begin, n - begin < kBlock ? n - begin : (int64_t)kBlock, low, INFINITY, to + found);
  }
  return found;
}

/* The k-th largest of n values without NaN, 1 <= k <= n; overwrites them as find_cut does. */
NPU_LANES_INLINE float kth_largest(float* values, int64_t n, int64_t k) {
  double limit = (double)(n - k);
  return find_cut(
             values, n, 0, INFINITY, [](Floats) NPU_LANES_BODY { return broadcast(1.0f); },
             [=](double sum) NPU_LANES_BODY { return sum > limit; })
      .value;
}

/* The k-th largest value of a row with these block maxima and no more than n - k NaN.  `values` has room for n floats
 * and kValuesSlack. */
template <class T>
float kth_largest_of_row(const T* from, int64_t n, int64_t k, const float* maxima, float* values) {
  int64_t blocks = (n + kBlock - 1) / kBlock;
  float bound = -INFINITY;
  if (k <= blocks / 2) { /* k blocks have a value from the k-th largest maximum on */
    memcpy(values, maxima, sizeof(float) * (size_t)blocks);
    bound = kth_largest(values, blocks, k);
  }
  int64_t found = collect_from(from, n, maxima, bound, values);
  return kth_largest(values, found, k);
}

}  // namespace
}  // namespace kernels
}  // namespace npu

#endif /* NPU_KERNELS_TOP_K_TOP_P_H_ */
