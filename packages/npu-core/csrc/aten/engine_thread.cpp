#include "engine_thread.h"

#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/GradMode.h>

#include <atomic>
#include <string>

#include "runtime/options.h"

namespace npu::aten {
namespace {

// Threads of the compute engine's team; 0 until the host asks for a number.
std::atomic<int> g_engine_threads{0};

const bool g_registered = [] {
  npu::on_option_change("engine_threads", [](const std::string& value) { g_engine_threads = std::stoi(value); });
  return true;
}();

// Aliases never own memory: the task's memory outlives the task by stream order.
at::Tensor make_alias(void* data, size_t bytes, at::ScalarType dtype) {
  auto storage = c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), bytes,
                                                       c10::DataPtr(data, c10::Device(c10::kCPU)),
                                                       /*allocator=*/nullptr, /*resizable=*/false);
  return at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(std::move(storage)), c10::DispatchKeySet(c10::DispatchKey::CPU), c10::scalarTypeToTypeMeta(dtype));
}

constexpr c10::DispatchKeySet kViewBits{c10::DispatchKey::Conjugate, c10::DispatchKey::Negative};

}  // namespace

EngineThread& EngineThread::current() {
  thread_local EngineThread state;
  const int wanted = g_engine_threads.load(std::memory_order_relaxed);
  if (C10_UNLIKELY(wanted > 0)) {
    thread_local int applied = 0;
    if (C10_UNLIKELY(applied != wanted)) {
      at::set_num_threads(wanted);
      applied = wanted;
    }
  }
  return state;
}

EngineThread::EngineThread() {
  at::init_num_threads();
  // For the life of the thread: no autograd, no view tracking, no autocast on the engine.
  thread_local at::AutoDispatchBelowADInplaceOrView below_autograd;
  c10::GradMode::set_enabled(false);
}

const at::Tensor& EngineThread::alias(void* data, at::ScalarType dtype, at::IntArrayRef sizes, at::IntArrayRef strides,
                                      bool conj, bool neg, bool wrapped_number) {
  if (C10_UNLIKELY(used_ == pool_.size())) pool_.emplace_back();
  at::Tensor& t = pool_[used_++];
  const size_t bytes = at::detail::computeStorageNbytes(sizes, strides, c10::elementSize(dtype), /*storage_offset=*/0);
  auto* impl = t.defined() ? t.unsafeGetTensorImpl() : nullptr;
  // A kernel that kept a reference, or left a view bit, costs us a fresh alias.
  if (C10_UNLIKELY(impl == nullptr || t.use_count() != 1 || impl->unsafe_storage().use_count() != 1 ||
                   impl->key_set().has_any(kViewBits))) {
    t = make_alias(data, bytes, dtype);
    impl = t.unsafeGetTensorImpl();
  } else {
    auto* storage = impl->unsafe_storage().unsafeGetStorageImpl();
    storage->set_data_ptr_noswap(c10::DataPtr(data, c10::Device(c10::kCPU)));
    storage->set_nbytes(bytes);
    const auto meta = c10::scalarTypeToTypeMeta(dtype);
    if (impl->dtype() != meta) impl->set_storage_and_dtype(impl->storage(), meta);
  }
  if (C10_UNLIKELY(impl->is_wrapped_number())) impl->set_wrapped_number(false);  // while it is still 0-dim
  if (impl->storage_offset() != 0 || impl->sizes() != sizes || impl->strides() != strides) {
    impl->set_sizes_and_strides(sizes, strides, 0);
  }
  if (C10_UNLIKELY(conj)) impl->_set_conj(true);
  if (C10_UNLIKELY(neg)) impl->_set_neg(true);
  if (C10_UNLIKELY(wrapped_number)) impl->set_wrapped_number(true);
  slots_.push_back(&t);
  return t;
}

}  // namespace npu::aten
