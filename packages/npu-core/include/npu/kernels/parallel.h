/* npu/kernels/parallel.h: split a loop over the thread team of the calling thread.
 *
 * On the npu the caller is the compute engine, which owns the process's only busy OpenMP team; for a CPU tensor it
 * is the user's thread.  Both go through torch, so torch.set_num_threads counts.
 */
#ifndef NPU_KERNELS_PARALLEL_H_
#define NPU_KERNELS_PARALLEL_H_

#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstdint>
#include <cstdio>

#include "npu/driver.h"

namespace npu::kernels {

/// Calls body(begin, end) for consecutive parts of [0, count), at least `grain` long each, in parallel.
///
/// `body` must not throw.  For use inside tasks: it reports failure as a status with text instead of throwing.
template <class Body>
npu_status parallel_for(int64_t count, int64_t grain, const Body& body, npu_error* error) {
  if (count <= 0) return NPU_OK;
  if (count <= grain) {
    body(int64_t{0}, count);
    return NPU_OK;
  }
  auto call = [](int64_t begin, int64_t end, void* context) { (*static_cast<const Body*>(context))(begin, end); };
  if (torch_parallel_for(0, count, grain, call, const_cast<Body*>(&body)) == TORCH_SUCCESS) return NPU_OK;
  std::snprintf(error->message, sizeof(error->message), "torch_parallel_for failed over %lld items",
                static_cast<long long>(count));
  return NPU_ERROR_SYSTEM;
}

/// Parts worth a thread: about 32 Ki elements, torch's own measure (below it waking a thread costs more).
inline int64_t grain_for(int64_t elements_per_item) {
  constexpr int64_t kElements = 32768;
  return elements_per_item >= kElements ? 1 : kElements / (elements_per_item > 0 ? elements_per_item : 1);
}

}  // namespace npu::kernels

#endif  // NPU_KERNELS_PARALLEL_H_
