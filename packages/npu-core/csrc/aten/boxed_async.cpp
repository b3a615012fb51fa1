// Operators without a kernel of their own whose results have a known shape: the shape comes from torch's meta kernel,
// the results are allocated, and the CPU kernel runs as a task of the stream.  The caller does not wait.
#include "boxed_async.h"

#include <ATen/core/List.h>
#include <torch/library.h>

#include <algorithm>

#include "boxed_codec.h"
#include "launch_op.h"
#include "operator_plan.h"
#include "philox_seed.h"
#include "runtime/generator.h"

namespace npu::aten {
namespace {

using Arguments = c10::ArrayRef<c10::IValue>;

// ---- on the dispatching thread --------------------------------------------------------------------------------------

// The one npu device of the arguments, -1 without one; nothing when a task cannot take them.
std::optional<int> common_device(const OperatorPlan& plan, Arguments arguments) {
  int device = -1;
  const auto fits = [&](const at::Tensor& t, bool written) {
    if (!t.defined()) return true;
    if (t.layout() != at::kStrided || t.unsafeGetTensorImpl()->is_python_dispatch()) return false;
    if (t.device().type() != kNpu) return t.is_cpu() && t.dim() == 0 && !written;  // a number: travels by value
    if (device < 0) device = t.device().index();
    return device == t.device().index() && !at::isQIntType(t.scalar_type());
  };
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto& value = arguments[i];
    if (value.isTensor()) {
      if (!fits(value.toTensor(), plan.written[i])) return std::nullopt;
    } else if (value.isTensorList()) {
      for (const at::Tensor& t : value.toTensorList()) {
        if (!fits(t, plan.written[i])) return std::nullopt;
      }
    } else if (value.isOptionalTensorList()) {
      for (const std::optional<at::Tensor>& t : value.toOptionalTensorList()) {
        if (t && !fits(*t, plan.written[i])) return std::nullopt;
      }
    } else if (value.isDevice()) {
      const auto d = value.toDevice();
      if (d.type() != kNpu) return std::nullopt;
      device = d.has_index() ? d.index() : current_device();
    } else if (static_cast<int>(i) != plan.generator && !can_encode(value)) {
      return std::nullopt;
    }
  }
  return device;
}

bool is_same_view(const at::Tensor& a, const at::Tensor& b) {
  return a.storage_offset() == b.storage_offset() && a.sizes() == b.sizes() && a.strides() == b.strides() &&
         a.scalar_type() == b.scalar_type();
}

const c10::StorageImpl* storage_of(const at::Tensor& t) {
  return t.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl();
}

// Whether a written argument is another view of a storage that another argument has.  The fallback's aliases share
// storages as their originals do, so the CPU kernels there can tell whether they overlap, and refuse.
bool writes_shared_storage(const OperatorPlan& plan, Arguments arguments) {
  c10::SmallVector<const at::Tensor*, 8> written;
  c10::SmallVector<at::Tensor, 8> from_lists;  // keeps elements of lists alive
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (!plan.written[i]) continue;
    if (arguments[i].isTensor()) {
      if (arguments[i].toTensor().defined()) written.push_back(&arguments[i].toTensor());
    } else if (arguments[i].isTensorList()) {
      for (const at::Tensor& t : arguments[i].toTensorList()) from_lists.push_back(t);
    }
  }
  for (const at::Tensor& t : from_lists) written.push_back(&t);
  if (written.empty()) return false;
  const auto by_storage = [](const at::Tensor* a, const at::Tensor* b) { return storage_of(*a) < storage_of(*b); };
  std::sort(written.begin(), written.end(), by_storage);
  // Lists of an optimiser may be parts of one buffer; other operators do not write the same storage twice.
  const bool lists = plan.keeps_shapes || plan.is_foreach;
  const bool elementwise = lists || plan.is_pointwise;
  if (!lists && std::adjacent_find(written.begin(), written.end(), [](const at::Tensor* a, const at::Tensor* b) {
                  return storage_of(*a) == storage_of(*b);
                }) != written.end()) {
    return true;
  }
  const auto clashes = [&](const at::Tensor& t) {
    if (!t.defined()) return false;
    const auto [first, last] = std::equal_range(written.begin(), written.end(), &t, by_storage);
    return std::any_of(first, last, [&](const at::Tensor* w) { return !elementwise || !is_same_view(*w, t); });
  };
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (plan.written[i]) continue;
    if (arguments[i].isTensor()) {
      if (clashes(arguments[i].toTensor())) return true;
    } else if (arguments[i].isTensorList()) {
      for (const at::Tensor& t : arguments[i].toTensorList()) {
        if (clashes(t)) return true;
      }
    }
  }
  return false;
}

void take_shape(const at::Tensor& t, const TensorShape& shape) {
  auto* impl = t.unsafeGetTensorImpl();
  if (impl->sizes() == shape.sizes && impl->strides() == shape.strides) return;
  const size_t bytes =
      at::detail::computeStorageNbytes(shape.sizes, shape.strides, impl->itemsize(), impl->storage_offset());
  resize_storage(impl->unsafe_storage().unsafeGetStorageImpl(), bytes, t.device().index());
  impl->set_sizes_and_strides(shape.sizes, shape.strides);
}

// out= overloads may find their outputs too small, or of another shape.
void resize_written(const OperatorPlan& plan, Arguments arguments, const CallShape& shape) {
  size_t next = 0;
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (!plan.written[i]) continue;
    if (arguments[i].isTensor()) {
      if (arguments[i].toTensor().defined()) take_shape(arguments[i].toTensor(), shape.written[next++]);
    } else if (arguments[i].isTensorList()) {
      for (const at::Tensor& t : arguments[i].toTensorList()) {
        if (t.defined()) take_shape(t, shape.written[next++]);
      }
    }
  }
}

void write_arguments(TaskWriter& writer, const OperatorPlan& plan, Arguments arguments, int device) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (static_cast<int>(i) == plan.generator) {
      std::optional<at::Generator> generator;
      if (arguments[i].isGenerator()) generator = arguments[i].toGenerator();
      encode_generator(writer, cpu_seed(reserve_philox(generator, device, 4)));
    } else {
      encode_value(writer, arguments[i]);
    }
  }
}

std::vector<at::Tensor> allocate_results(const CallShape& shape, int device) {
  std::vector<at::Tensor> results;
  results.reserve(shape.results.size());
  for (const auto& r : shape.results) {
    results.push_back(r.defined ? empty_strided_npu(r.sizes, r.strides, r.dtype, device) : at::Tensor());
  }
  return results;
}

void replace_stack(const OperatorPlan& plan, const CallShape& shape, std::vector<at::Tensor> results,
                   torch::jit::Stack* stack) {
  const size_t count = plan.written.size();
  const size_t first = stack->size() - count;
  torch::jit::Stack returned;
  auto next = results.begin();
  for (size_t i = 0; i < plan.returns.size(); ++i) {
    if (plan.returns[i].argument >= 0) {
      returned.push_back((*stack)[first + static_cast<size_t>(plan.returns[i].argument)]);
    } else if (plan.returns[i].is_list) {
      c10::List<at::Tensor> list;
      for (std::int64_t k = 0; k < shape.list_sizes[i]; ++k) list.push_back(std::move(*next++));
      returned.emplace_back(std::move(list));
    } else {
      returned.emplace_back(std::move(*next++));
    }
  }
  torch::jit::drop(*stack, count);
  for (auto& value : returned) stack->push_back(std::move(value));
}

// ---- on the engine --------------------------------------------------------------------------------------------------

void store_result(const char* op, const at::Tensor& to, const at::Tensor& from) {
  if (!to.defined()) return;
  TORCH_CHECK(from.defined() && from.sizes() == to.sizes() && from.scalar_type() == to.scalar_type(), op,
              ": the kernel's result is ",
              from.defined() ? c10::str(from.scalar_type(), " ", from.sizes()) : std::string("undefined"),
              " where the operator's shape function promised ", to.scalar_type(), " ", to.sizes(),
              "; this is a defect of npu-core, please report it");
  const_cast<at::Tensor&>(to).copy_(from);
}

void run_functional(const OperatorPlan& plan, torch::jit::Stack& stack, const std::vector<at::Tensor>& results) {
  plan.op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack);
  auto next = results.begin();
  for (size_t i = 0; i < plan.returns.size(); ++i) {
    if (plan.returns[i].argument >= 0) continue;
    const auto& value = stack[stack.size() - plan.returns.size() + i];
    if (plan.returns[i].is_list) {
      for (const at::Tensor& t : value.toTensorVector()) store_result(plan.name, *next++, t);
    } else {
      store_result(plan.name, *next++, value.isNone() ? at::Tensor() : value.toTensor());
    }
  }
}

void run_out(const OperatorPlan& plan, torch::jit::Stack& stack, const std::vector<at::Tensor>& results) {
  std::vector<c10::SmallVector<std::int64_t, 5>> strides;
  for (const auto& t : results) {
    strides.emplace_back(t.strides().begin(), t.strides().end());
    stack.emplace_back(t);
  }
  plan.out->redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack);
  // A kernel that chose another memory format restrided the alias only: put the elements where the npu tensor looks.
  for (size_t i = 0; i < results.size(); ++i) {
    if (results[i].strides() == at::IntArrayRef(strides[i])) continue;
    const auto dense = results[i].clone();
    results[i].as_strided(results[i].sizes(), strides[i]).copy_(dense);
  }
}

bool all_defined(const std::vector<at::Tensor>& tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [](const at::Tensor& t) { return t.defined(); });
}

npu_status run_task(void* payload, npu_error* error) noexcept {
  try {
    TaskReader reader(payload);
    const auto& plan = *reader.value<const OperatorPlan*>();
    torch::jit::Stack stack;
    stack.reserve(plan.written.size() + plan.returns.size());
    for (size_t i = 0; i < plan.written.size(); ++i) stack.push_back(decode_value(reader));
    std::vector<at::Tensor> results(static_cast<size_t>(reader.value<std::int64_t>()));
    for (auto& t : results) t = reader.tensor();
    if (plan.out && all_defined(results)) {
      run_out(plan, stack, results);
    } else {
      run_functional(plan, stack, results);
    }
    return NPU_OK;
  } catch (...) {
    return capture_exception(error);
  }
}

}  // namespace

bool run_asynchronously(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& plan = OperatorPlan::of(op);
  if (!plan.is_asynchronous) return false;
  const Arguments arguments = torch::jit::last(*stack, plan.written.size());
  const auto common = common_device(plan, arguments);
  if (!common) return false;
  const int device = *common < 0 ? current_device() : *common;
  if (writes_shared_storage(plan, arguments)) return false;
  const auto known = shape_of_call(plan, arguments);
  if (known == nullptr) return false;
  const CallShape& shape = *known;

  if (!plan.keeps_shapes) resize_written(plan, arguments, shape);
  auto results = allocate_results(shape, device);
  TaskWriter writer(plan.name);
  writer.value(&plan);
  write_arguments(writer, plan, arguments, device);
  writer.value(static_cast<std::int64_t>(results.size()));
  for (const auto& t : results) writer.tensor(t);
  detail::submit_to(current_stream(device), writer, plan.name, &run_task, NPU_TASK_COMPUTE);
  replace_stack(plan, shape, std::move(results), stack);
  return true;
}

}  // namespace npu::aten
