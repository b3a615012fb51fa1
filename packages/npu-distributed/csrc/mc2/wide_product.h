// Products of bfloat16 matrices that stay float32.
#pragma once

#include <ATen/core/Tensor.h>

namespace npu::distributed {

/// Whether WideProductInto takes matrices with inner size `k`: the CPU needs instructions for bfloat16, without which a
/// product of the matrices as float32 is as fast; and it takes pairs of rows, so `k` must be even.
bool HasWideProduct(int64_t k);

/// Queues out = x @ weight on the current stream.  Products are summed in float32 and never rounded to bfloat16, which
/// aten has no operator for.  x [m, k] and weight [k, n] bfloat16 with any strides; out [m, n] float32, contiguous.
///
/// As fast as aten's bfloat16 product, whose block kernels it uses: 1024x4096x4096 on one Zen 4 core about 150 GFLOP/s,
/// as float32 matrices 65.
void WideProductInto(const at::Tensor& out, const at::Tensor& x, const at::Tensor& weight);

}  // namespace npu::distributed
