// randperm.  Elements go to random buckets, then each bucket is shuffled: every permutation is equally likely, buckets
// fit into a cache, and both steps run in parallel (Rao 1961, Sandelius 1962).
#include <ATen/native/Resize.h>
#include <torch/library.h>

#include <array>
#include <limits>
#include <utility>
#include <vector>

#include "philox_stream.h"
#include "random_common.h"

namespace npu::aten {
namespace {

constexpr std::int64_t kBucket = 1 << 14;  // elements per bucket, on average
constexpr int kMaxBucketBits = 12;
constexpr std::int64_t kMaxParts = 256;  // pieces of [0, n) that are dealt out in parallel

int bucket_bits(std::int64_t n) {
  int bits = 0;
  while (bits < kMaxBucketBits && (n >> bits) > kBucket) ++bits;
  return bits;
}

// Words [begin, begin + count) of the second half of a call's words, in order.
class Words {
 public:
  Words(PhiloxState state, std::int64_t begin, std::int64_t end) : state_(state), next_(begin), end_(end) {}

  std::uint32_t next() {
    if (next_ >= loaded_) load();
    return buffer_[static_cast<size_t>(next_++ - first_)];
  }

 private:
  void load() {
    first_ = next_ / philox::kBlock * philox::kBlock;
    const std::int64_t count = std::min(philox::kChunk, end_ - first_);
    philox::kernels().bits(buffer_.data(), philox::Draw{state_.seed, state_.offset, first_, count});
    loaded_ = first_ + count;
  }

  PhiloxState state_;
  std::int64_t next_, end_, first_ = 0, loaded_ = 0;
  std::array<std::uint32_t, philox::kChunk> buffer_;
};

// Fisher-Yates on elements [begin, end) of the whole; word i is element i's.
template <class T>
void shuffle(T* data, std::int64_t begin, std::int64_t end, PhiloxState state) {
  if (end - begin < 2) return;
  Words words(state, begin, end);
  for (std::int64_t i = begin; i < end; ++i) {
    const auto bound = static_cast<std::uint64_t>(i - begin + 1);
    std::uint64_t product = words.next() * bound;
    // bound does not divide 2^32 in general: the first 2^32 mod bound remainders would come up too often.
    if (C10_UNLIKELY(static_cast<std::uint32_t>(product) < bound)) {
      const std::uint64_t surplus = (std::uint64_t{1} << 32) % bound;
      if (static_cast<std::uint32_t>(product) < surplus) {
        philox::Stream more(state, i + 1);  // element 0 has the words of the call itself
        do product = more.word() * bound;
        while (static_cast<std::uint32_t>(product) < surplus);
      }
    }
    std::swap(data[i], data[begin + static_cast<std::int64_t>(product >> 32)]);
  }
}

// The two halves of the call's words: who goes where, and how buckets are shuffled.
std::int64_t words_of_half(std::int64_t n) { return (n + philox::kBlock - 1) / philox::kBlock * philox::kBlock; }

template <class T>
void permute(T* data, std::int64_t n, PhiloxState state) {
  const PhiloxState shuffles{state.seed, state.offset + static_cast<std::uint64_t>(words_of_half(n))};
  const int bits = bucket_bits(n);
  if (bits == 0) {
    for (std::int64_t i = 0; i < n; ++i) data[i] = static_cast<T>(i);
    shuffle(data, 0, n, shuffles);
    return;
  }
  const std::int64_t buckets = std::int64_t{1} << bits;
  const std::int64_t chunks = (n + philox::kChunk - 1) / philox::kChunk;
  const std::int64_t part = (chunks + kMaxParts - 1) / kMaxParts * philox::kChunk;
  const std::int64_t parts = (n + part - 1) / part;
  std::vector<std::int64_t> position(static_cast<size_t>(parts * buckets), 0);
  // visit(element, bucket) for the elements of part p, in order.
  const auto deal = [&](std::int64_t p, const auto& visit) {
    std::array<std::uint32_t, philox::kChunk> word;
    const std::int64_t end = std::min(n, (p + 1) * part);
    for (std::int64_t begin = p * part; begin < end; begin += philox::kChunk) {
      const std::int64_t count = std::min(philox::kChunk, end - begin);
      philox::kernels().bits(word.data(), philox::Draw{state.seed, state.offset, begin, count});
      for (std::int64_t i = 0; i < count; ++i) {
        visit(begin + i, static_cast<std::int64_t>(word[static_cast<size_t>(i)] >> (32 - bits)));
      }
    }
  };
  in_parallel(parts, 1, [&](std::int64_t from, std::int64_t to) {
    for (std::int64_t p = from; p < to; ++p) {
      std::int64_t* counts = &position[static_cast<size_t>(p * buckets)];
      deal(p, [&](std::int64_t, std::int64_t bucket) { ++counts[bucket]; });
    }
  });
  std::vector<std::int64_t> start(static_cast<size_t>(buckets) + 1);
  std::int64_t filled = 0;
  for (std::int64_t b = 0; b < buckets; ++b) {
    start[static_cast<size_t>(b)] = filled;
    for (std::int64_t p = 0; p < parts; ++p) {
      filled += std::exchange(position[static_cast<size_t>(p * buckets + b)], filled);
    }
  }
  start.back() = filled;
  in_parallel(parts, 1, [&](std::int64_t from, std::int64_t to) {
    for (std::int64_t p = from; p < to; ++p) {
      std::int64_t* next = &position[static_cast<size_t>(p * buckets)];
      deal(p, [&](std::int64_t element, std::int64_t bucket) { data[next[bucket]++] = static_cast<T>(element); });
    }
  });
  in_parallel(buckets, 1, [&](std::int64_t from, std::int64_t to) {
    for (std::int64_t b = from; b < to; ++b) {
      shuffle(data, start[static_cast<size_t>(b)], start[static_cast<size_t>(b) + 1], shuffles);
    }
  });
}

void run_randperm(const at::Tensor& out, PhiloxState state) {
  on_contiguous(out, [&](const at::Tensor& dense) {
    AT_DISPATCH_ALL_TYPES_AND2(at::kHalf, at::kBFloat16, dense.scalar_type(), "randperm",
                               [&] { permute(dense.mutable_data_ptr<scalar_t>(), dense.numel(), state); });
  });
}

// The largest n for which `dtype` holds 0 ... n - 1.
std::int64_t longest(at::ScalarType dtype) {
  std::int64_t n = 0;
  AT_DISPATCH_ALL_TYPES_AND2(at::kHalf, at::kBFloat16, dtype, "randperm", [&] {
    using Limits = std::numeric_limits<scalar_t>;
    const std::int64_t top =
        Limits::is_integer ? static_cast<std::int64_t>(Limits::max()) : std::int64_t{1} << std::min(Limits::digits, 62);
    n = top == std::numeric_limits<std::int64_t>::max() ? top : top + 1;
  });
  return n;
}

at::Tensor& randperm_out(std::int64_t n, OptGenerator generator, at::Tensor& out) {
  TORCH_CHECK(n >= 0, "n must be non-negative, got", n);
  TORCH_CHECK_NOT_IMPLEMENTED(!out.is_complex() && out.scalar_type() != at::kBool,
                              "randperm: expected an integer or floating point dtype, but got ", out.scalar_type());
  const std::int64_t most = longest(out.scalar_type());
  TORCH_CHECK(n <= most, "randperm: n cannot be greater than ", most, " for ", out.scalar_type(), " type, but got ", n,
              "; use torch.int64");
  at::native::resize_output(out, {n});
  at::assert_no_internal_overlap(out);
  if (n == 0) return out;
  launch_op<&run_randperm>("aten::randperm", out, reserve_words(out, generator, 2 * words_of_half(n)));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) { m.impl("randperm.generator_out", TORCH_FN(randperm_out)); }

}  // namespace npu::aten
