#include "mc2/grouped_product.h"

#include <ATen/ATen.h>

namespace npu::distributed {

void GroupedProduct::Into(at::Tensor out, const at::Tensor& x, int64_t group) const {
  if (out.numel() != 0) at::mm_out(out, x, weight_.select(0, group));
}

}  // namespace npu::distributed
