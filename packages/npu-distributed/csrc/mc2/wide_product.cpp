#include "mc2/wide_product.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <vector>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "npu/kernels/isa.h"
#include "npu/kernels/parallel.h"
#include "process_group/runtime_access.h"

namespace npu::distributed {
namespace {

using at::BFloat16;

// A panel of the weight is packed as blocks of kColumns columns and multiplied with all rows of a stretch.  The panel
// stays in the second-level cache, so x is read once per panel, and what the products add up in stays in the third.
// Measured with 2048x4096x4096 in two processes: kInner 512 is 3 % slower, panels of 256 columns are as fast.
constexpr int64_t kColumns = 128;
constexpr int64_t kPanel = 4 * kColumns;
constexpr int64_t kInner = 1024;
constexpr int64_t kRows = 128;  // of one call of the block kernel

struct Product {
  const BFloat16* x;
  const BFloat16* weight;
  float* out;
  int64_t m, n, k;
  int64_t x_stride;       ///< between rows; columns are adjacent
  int64_t weight_stride;  ///< between rows, or between columns when `is_transposed`; the other one is 1
  bool is_transposed;
};

uint32_t PairAt(const BFloat16* at) {
  uint32_t pair;
  std::memcpy(&pair, at, sizeof pair);
  return pair;
}

/// to[n] = pair of low[n] and high[n].
void Interleave(const BFloat16* low, const BFloat16* high, int64_t count, uint32_t* to) {
  int64_t n = 0;
#if defined(__SSE2__)
  for (; n + 8 <= count; n += 8) {
    const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(low + n));
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(high + n));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + n), _mm_unpacklo_epi16(a, b));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + n + 4), _mm_unpackhi_epi16(a, b));
  }
#endif
  for (; n < count; ++n) to[n] = low[n].x | static_cast<uint32_t>(high[n].x) << 16;
}

/// Elements 2i and 2i + 1 of each column side by side, as dot product instructions want them: [inner / 2, kColumns, 2].
void Pack(const Product& product, int64_t first_k, int64_t inner, int64_t first_n, int64_t columns, uint32_t* packed) {
  if (!product.is_transposed) {
    for (int64_t i = 0; i < inner / 2; ++i) {
      const BFloat16* low = product.weight + (first_k + 2 * i) * product.weight_stride + first_n;
      Interleave(low, low + product.weight_stride, columns, packed + i * kColumns);
    }
    return;
  }
  constexpr int64_t kTile = 16;  // pairs: one cache line of a column
  for (int64_t begin = 0; begin < inner / 2; begin += kTile) {
    const int64_t end = std::min(begin + kTile, inner / 2);
    for (int64_t n = 0; n < columns; ++n) {
      const BFloat16* column = product.weight + (first_n + n) * product.weight_stride + first_k;
      for (int64_t i = begin; i < end; ++i) packed[i * kColumns + n] = PairAt(column + 2 * i);
    }
  }
}

#ifdef CPUBLAS_BRGEMM_BF16BF16F32
/// Rows [first_m, last_m) of the panel of columns that begins at `first_n`.
void Multiply(const Product& product, int64_t first_m, int64_t last_m, int64_t first_n) {
  constexpr int64_t kBlock = kInner / 2 * kColumns;
  thread_local std::vector<uint32_t> packed(kBlock * (kPanel / kColumns));
  const int64_t last_n = std::min(first_n + kPanel, product.n);
  for (int64_t k = 0; k < product.k; k += kInner) {
    const int64_t inner = std::min(kInner, product.k - k);
    for (int64_t n = first_n; n < last_n; n += kColumns) {
      Pack(product, k, inner, n, std::min(kColumns, last_n - n), packed.data() + (n - first_n) / kColumns * kBlock);
    }
    for (int64_t m = first_m; m < last_m; m += kRows) {
      for (int64_t n = first_n; n < last_n; n += kColumns) {
        at::native::cpublas::brgemm(
            std::min(kRows, last_m - m), std::min(kColumns, last_n - n), inner, product.x_stride, kColumns, product.n,
            /*add_C=*/k > 0, product.x + m * product.x_stride + k,
            reinterpret_cast<const BFloat16*>(packed.data() + (n - first_n) / kColumns * kBlock),
            product.out + m * product.n + n, /*is_vnni=*/true);
      }
    }
  }
  at::native::cpublas::brgemm_release();
}

npu_status Run(void* payload, npu_error* error) {
  const Product& product = *static_cast<const Product*>(payload);
  const int64_t panels = (product.n + kPanel - 1) / kPanel;
  // Each stretch of rows packs the panel again, so rows are cut only where there are too few panels for the threads.
  const int64_t wanted = (at::get_num_threads() + panels - 1) / panels;
  const int64_t stretch = std::max<int64_t>(1, (product.m + wanted * kRows - 1) / (wanted * kRows)) * kRows;
  const int64_t stretches = (product.m + stretch - 1) / stretch;
  std::atomic<bool> failed{false};
  const auto work = [&](int64_t begin, int64_t end) {
    try {
      for (int64_t i = begin; i < end && !failed; ++i) {
        const int64_t first = i % stretches * stretch;
        Multiply(product, first, std::min(first + stretch, product.m), i / stretches * kPanel);
      }
    } catch (const std::exception& exception) {
      if (!failed.exchange(true)) std::strncpy(error->message, exception.what(), sizeof error->message - 1);
    }
  };
  const npu_status status = kernels::parallel_for(panels * stretches, 1, work, error);
  return failed ? NPU_ERROR_SYSTEM : status;
}
#endif

}  // namespace

bool HasWideProduct(int64_t k) {
#ifdef CPUBLAS_BRGEMM_BF16BF16F32
  return k > 0 && k % 2 == 0 && kernels::cpu_isa() >= kernels::Isa::avx512_bf16 &&
         at::globalContext().userEnabledMkldnn();
#else
  return k < 0;
#endif
}

void WideProductInto(const at::Tensor& out, const at::Tensor& x, const at::Tensor& weight) {
#ifdef CPUBLAS_BRGEMM_BF16BF16F32
  const auto is_matrix = [](const at::Tensor& tensor, int64_t adjacent) {
    return tensor.stride(adjacent) == 1 && tensor.stride(1 - adjacent) >= tensor.size(adjacent);
  };
  const at::Tensor rows = is_matrix(x, 1) ? x : x.contiguous();
  const bool is_transposed = !is_matrix(weight, 1) && is_matrix(weight, 0);
  const at::Tensor operand = is_transposed || is_matrix(weight, 1) ? weight : weight.contiguous();
  Product product{static_cast<const BFloat16*>(rows.const_data_ptr()),
                  static_cast<const BFloat16*>(operand.const_data_ptr()),
                  static_cast<float*>(out.mutable_data_ptr()),
                  out.size(0),
                  out.size(1),
                  x.size(1),
                  rows.stride(0),
                  operand.stride(is_transposed ? 1 : 0),
                  is_transposed};
  const npu_runtime_api& runtime = Runtime();
  npu_task task{};
  task.run = &Run;
  task.name = "aten::mm";
  task.payload = &product;
  task.payload_size = sizeof product;
  task.kind = NPU_TASK_COMPUTE;
  const npu_access accesses[] = {
      {product.x, rows.nbytes(), 0, 0}, {product.weight, operand.nbytes(), 0, 0}, {product.out, out.nbytes(), 1, 0}};
  CheckRuntime(runtime.launch(runtime.current_stream(out.device().index()), &task, accesses, 3), "queueing a product");
#else
  TORCH_CHECK(false, "this build has no product of bfloat16 matrices that gives float32");
#endif
}

}  // namespace npu::distributed
