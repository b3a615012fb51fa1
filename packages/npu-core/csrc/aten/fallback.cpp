// Boxed fallback: ops without a kernel of their own run torch's CPU kernel on the engine, in stream order, over the
// device memory itself, while the caller waits.  Ops whose result shape depends on data stay here by nature; those
// whose shape is known run asynchronously (boxed_async.cpp).
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/Resize.h>
#include <c10/util/irange.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <mutex>
#include <set>
#include <string>

#include "boxed_async.h"
#include "copy.h"
#include "empty.h"
#include "engine_call.h"
#include "engine_thread.h"
#include "fallback.h"
#include "philox_seed.h"
#include "quantized.h"
#include "runtime/error.h"
#include "runtime/generator.h"
#include "runtime/options.h"
#include "sparse.h"

namespace npu::aten {
namespace {

// One npu storage seen by the call, and the CPU storage over the same memory that its aliases share.
struct StorageAlias {
  c10::Storage npu;
  c10::Storage cpu;
  void* address;  // where cpu started: a kernel that resizes it moves it
};

struct TensorAlias {
  at::Tensor npu;
  at::Tensor cpu;
  bool is_written;
};

class FallbackCall {
 public:
  FallbackCall(const c10::OperatorHandle& op, torch::jit::Stack* stack) : op_(op), stack_(stack) {}

  void run() {
    convert_arguments();
    if (device_ < 0) device_ = current_device();
    Stream* stream = current_stream(device_);
    run_on_engine(stream, name(), [&] {
      keep_scales();
      if (special_operand_) {
        // Some sparse kernels ask whether a gradient will be wanted.
        const at::AutoGradMode grad(grad_mode_);
        op_.callBoxed(stack_);  // the CPU kernel for this combination of layouts
      } else {
        op_.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack_);
      }
    });
    for (auto& t : tensors_) {
      if (t.is_written) take_back(t);
    }
    convert_results();
  }

 private:
  const char* name() const { return op_.schema().operator_name().name.c_str(); }

  void convert_arguments() {
    const auto& arguments = op_.schema().arguments();
    const size_t first = stack_->size() - arguments.size();
    for (const auto i : c10::irange(arguments.size())) {
      auto& value = (*stack_)[first + i];
      const auto* alias = arguments[i].alias_info();
      const bool written = alias != nullptr && alias->isWrite();
      if (value.isTensor()) {
        if (value.toTensor().defined()) value = to_cpu(value.toTensor(), written);
      } else if (value.isTensorList()) {
        c10::List<at::Tensor> list;
        for (const at::Tensor& t : value.toTensorVector()) list.push_back(to_cpu(t, written));
        value = std::move(list);
      } else if (value.isOptionalTensorList()) {
        c10::List<std::optional<at::Tensor>> list;
        for (const auto& t : value.toOptionalTensorVector()) {
          list.push_back(t.has_value() ? std::optional<at::Tensor>(to_cpu(*t, written)) : std::nullopt);
        }
        value = std::move(list);
      } else if (value.isDevice()) {
        if (value.toDevice().type() == kNpu) {
          device_ = value.toDevice().has_index() ? value.toDevice().index() : current_device();
          value = c10::Device(c10::kCPU);
        } else {
          results_stay_ = true;
        }
      } else if (value.isGenerator()) {
        value = cpu_generator(value.toGenerator());
      } else if (value.isNone() && arguments[i].name() == "generator") {
        wants_generator_ = &value;
      } else if (value.isBool() && arguments[i].name() == "pin_memory") {
        value = c10::IValue();
      }
    }
    check_devices();
    // Factories of quantised tensors: the dispatcher finds the CPU's by their dtype.
    if (op_.schema().name().find("_quantized") != std::string::npos) special_operand_ = true;
    if (special_operand_) {
      for (auto& t : tensors_) {
        if (t.npu.requires_grad()) t.cpu.set_requires_grad(true);
      }
    }
    // A random op without an explicit generator draws from the device's default one.
    if (wants_generator_ != nullptr) *wants_generator_ = cpu_generator(std::nullopt);
  }

  // A per-channel quantizer keeps the tensors it is given: it must not keep aliases of device memory.
  void keep_scales() {
    const auto& arguments = op_.schema().arguments();
    for (size_t i = 0; i < arguments.size(); ++i) {
      const auto& argument = arguments[i].name();
      auto& value = (*stack_)[stack_->size() - arguments.size() + i];
      if ((argument == "scales" || argument == "zero_points") && value.isTensor()) value = value.toTensor().clone();
    }
  }

  // torch's CPU kernels need a CPU generator: seed one from the Philox range this call reserves.
  c10::IValue cpu_generator(const std::optional<at::Generator>& generator) {
    const auto state = reserve_philox(generator, device_ < 0 ? current_device() : device_, 4);
    return c10::IValue(at::detail::createCPUGenerator(cpu_seed(state)));
  }

  at::Tensor to_cpu(const at::Tensor& t, bool written) {
    if (!t.defined()) return t;
    if (t.device().type() != kNpu) {
      if (t.is_cpu() && t.dim() > 0) cpu_operand_ = true;
      special_operand_ |= t.is_quantized() || is_sparse_layout(t.layout());
      return t;
    }
    if (device_ < 0) device_ = t.device().index();
    TORCH_CHECK(device_ == t.device().index(),
                "Expected all tensors to be on the same device, but found at least two "
                "devices, npu:",
                device_, " and ", t.device(), "! (", op_.schema().operator_name(), ")");
    for (auto& seen : tensors_) {
      if (seen.npu.is_same(t)) {
        seen.is_written |= written;
        return seen.cpu;
      }
    }
    if (is_sparse_layout(t.layout())) {
      special_operand_ = true;
      auto cpu = map_sparse(t, c10::Device(c10::kCPU), [&](const at::Tensor& part) { return to_cpu(part, false); });
      tensors_.push_back({t, cpu, written});
      return cpu;
    }
    TORCH_CHECK_NOT_IMPLEMENTED(t.layout() == at::kStrided, op_.schema().operator_name(), ": ", t.layout(),
                                " tensors are not supported on npu by this operator; use a dense tensor or .cpu()");
    auto* impl = t.unsafeGetTensorImpl();
    auto cpu = tensor_like(t, cpu_storage(impl->storage()), c10::kCPU);
    special_operand_ |= t.is_quantized();
    auto* to = cpu.unsafeGetTensorImpl();
    to->set_sizes_and_strides(impl->sizes(), impl->strides(), impl->storage_offset());
    if (impl->is_conj()) to->_set_conj(true);
    if (impl->is_neg()) to->_set_neg(true);
    if (impl->is_wrapped_number()) to->set_wrapped_number(true);
    tensors_.push_back({t, cpu, written});
    return cpu;
  }

  c10::Storage cpu_storage(const c10::Storage& npu) {
    for (const auto& s : storages_) {
      if (s.npu.unsafeGetStorageImpl() == npu.unsafeGetStorageImpl()) return s.cpu;
    }
    auto* impl = npu.unsafeGetStorageImpl();
    // Resizable, so that out= and resize_ kernels can grow it: take_back() then adopts the new memory.
    c10::Storage cpu(c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), impl->nbytes(),
                                                           c10::DataPtr(impl->mutable_data(), c10::Device(c10::kCPU)),
                                                           c10::GetCPUAllocator(), /*resizable=*/true));
    storages_.push_back({npu, cpu, impl->mutable_data()});
    return cpu;
  }

  void check_devices() const {
    if (!cpu_operand_ || tensors_.empty()) return;
    // Lists of indices may live on the host, as with every accelerator of torch.
    static const std::set<std::string> kHostOperands = {
        "aten::index",      "aten::_unsafe_index",    "aten::index_put",
        "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index_put"};
    TORCH_CHECK(kHostOperands.count(op_.schema().name()) != 0,
                "Expected all tensors to be on the same device, but found at least two devices, npu:", device_,
                " and cpu! (", op_.schema().operator_name(), ")");
  }

  // Carries back what the kernel changed beyond the data: shape, strides, moved storage.
  void take_back(TensorAlias& t) {
    if (is_sparse_layout(t.npu.layout())) {
      return assign_sparse(t.npu, t.cpu, [&](const at::Tensor& part) { return to_npu(part); });
    }
    auto* from = t.cpu.unsafeGetTensorImpl();
    auto* to = t.npu.unsafeGetTensorImpl();
    if (from->dtype() != to->dtype()) return;
    auto* storage = to->unsafe_storage().unsafeGetStorageImpl();
    for (auto& s : storages_) {
      if (s.npu.unsafeGetStorageImpl() != storage) continue;
      auto* moved = from->unsafe_storage().unsafeGetStorageImpl();
      if (moved->mutable_data() != s.address) {
        const size_t bytes = moved->nbytes();
        auto fresh = npu_bytes_from(moved->data(), bytes);
        storage->set_data_ptr_noswap(std::move(fresh));
        storage->set_nbytes(bytes);
        moved->set_data_ptr_noswap(c10::DataPtr(storage->mutable_data(), c10::Device(c10::kCPU)));
        s.address = storage->mutable_data();
      }
      break;
    }
    if (to->sizes() != from->sizes() || to->strides() != from->strides() ||
        to->storage_offset() != from->storage_offset()) {
      to->set_sizes_and_strides(from->sizes(), from->strides(), from->storage_offset());
    }
  }

  // Device memory with the given content.  Written in stream order: the block may have been freed by another thread
  // whose tasks still use it.
  c10::DataPtr npu_bytes_from(const void* host, size_t bytes) const {
    Stream* stream = current_stream(device_);
    auto data = caching_allocator().allocate_on(bytes, stream);
    copy_from_host(stream, data.get(), host, bytes);
    return data;
  }

  void convert_results() {
    if (results_stay_) return;
    const size_t count = op_.schema().returns().size();
    const size_t first = stack_->size() - count;
    for (const auto i : c10::irange(count)) {
      auto& value = (*stack_)[first + i];
      if (value.isTensor()) {
        value = to_npu(value.toTensor());
      } else if (value.isTensorList()) {
        c10::List<at::Tensor> list;
        for (const at::Tensor& t : value.toTensorVector()) list.push_back(to_npu(t));
        value = std::move(list);
      }
    }
  }

  at::Tensor to_npu(const at::Tensor& t) {
    if (!t.defined() || !t.is_cpu()) return t;
    for (const auto& seen : tensors_) {
      if (seen.cpu.is_same(t)) return seen.npu;
    }
    if (is_sparse_layout(t.layout())) {
      const c10::Device device(kNpu, static_cast<c10::DeviceIndex>(device_));
      return map_sparse(t, device, [&](const at::Tensor& part) { return to_npu(part); });
    }
    TORCH_CHECK_NOT_IMPLEMENTED(t.layout() == at::kStrided, op_.schema().operator_name(), ": the result has layout ",
                                t.layout(), ", which is not supported on npu; use .cpu() tensors for this operator");
    auto* impl = t.unsafeGetTensorImpl();
    auto result = tensor_like(t, npu_storage(t), kNpu);
    auto* to = result.unsafeGetTensorImpl();
    to->set_sizes_and_strides(impl->sizes(), impl->strides(), impl->storage_offset());
    if (impl->is_conj()) to->_set_conj(true);
    if (impl->is_neg()) to->_set_neg(true);
    return result;
  }

  // A view of an argument shares its storage; anything else moves into device memory, once per storage.
  c10::Storage npu_storage(const at::Tensor& t) {
    auto* cpu = t.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl();
    for (const auto& s : storages_) {
      if (s.cpu.unsafeGetStorageImpl() == cpu) return s.npu;
    }
    const size_t bytes = cpu->nbytes();
    auto data = npu_bytes_from(cpu->data(), bytes);
    c10::Storage npu(c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), bytes, std::move(data),
                                                           &caching_allocator(), /*resizable=*/true));
    storages_.push_back({npu, t.storage(), cpu->mutable_data()});
    return npu;
  }

  const c10::OperatorHandle& op_;
  torch::jit::Stack* stack_;
  int device_ = -1;
  bool cpu_operand_ = false;
  const bool grad_mode_ = at::GradMode::is_enabled();
  bool results_stay_ = false;  // an argument asks for a device that is no npu
  bool special_operand_ = false;
  c10::IValue* wants_generator_ = nullptr;
  c10::SmallVector<TensorAlias, 8> tensors_;
  c10::SmallVector<StorageAlias, 8> storages_;
};

// NPU_COUNT_FALLBACKS=1: how often each operator came here, printed when the process ends.
class FallbackCounts {
 public:
  ~FallbackCounts() {
    for (const auto& [name, count] : counts_) std::fprintf(stderr, "npu: fallback %8llu x %s\n", count, name.c_str());
  }
  void add(const c10::OperatorHandle& op) {
    std::lock_guard lock(mutex_);
    ++counts_[c10::toString(op.operator_name())];
  }

 private:
  std::mutex mutex_;
  std::map<std::string, unsigned long long> counts_;
};

void count_fallback(const c10::OperatorHandle& op) {
  static const bool wanted = env_flag("NPU_COUNT_FALLBACKS", false);
  if (C10_LIKELY(!wanted)) return;
  static FallbackCounts counts;
  counts.add(op);
}

}  // namespace

void boxed_fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  if (run_asynchronously(op, stack)) return;
  static const bool disabled = env_flag("TORCH_NPU_FALLBACK_CPU_DISABLE", false);
  TORCH_CHECK(
      !disabled, "The operator '", op.schema().operator_name(),
      "' has no kernel of its own on npu, and TORCH_NPU_FALLBACK_CPU_DISABLE=1 forbids the fallback. Unset it, or "
      "move the tensors with .cpu().",
      error_suffix(Submodule::OPS, ErrorCode::NOT_SUPPORT));
  const std::array keys{c10::DispatchKey::CPU, c10::DispatchKey::CompositeExplicitAutograd, c10::DispatchKey::SparseCPU,
                        c10::DispatchKey::SparseCsrCPU, c10::DispatchKey::QuantizedCPU};
  TORCH_CHECK_NOT_IMPLEMENTED(
      std::any_of(keys.begin(), keys.end(), [&](auto k) { return op.hasKernelForDispatchKey(k); }), "The operator '",
      op.schema().operator_name(), "' is not supported on npu: it has neither an npu nor a CPU kernel.",
      error_suffix(Submodule::OPS, ErrorCode::NOT_SUPPORT));
  count_fallback(op);
  FallbackCall(op, stack).run();
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&boxed_fallback>()); }

}  // namespace npu::aten
