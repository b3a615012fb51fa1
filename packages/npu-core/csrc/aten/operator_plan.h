#pragma once
// What is known of an operator before it runs: which arguments it writes, and what its results look like.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <memory>
#include <optional>
#include <vector>

namespace npu::aten {

// How one operator is run asynchronously through its schema.  Made once per operator, never destroyed.
struct OperatorPlan {
  struct Return {
    bool is_list;
    int argument;  // the written argument that the operator returns; -1: a new tensor
  };

  explicit OperatorPlan(const c10::OperatorHandle& op);

  c10::OperatorHandle op;
  // Shapes of the results where torch has no meta kernel.
  struct CallShape (*shape_function)(c10::ArrayRef<c10::IValue> arguments) = nullptr;
  // The out= overload, when torch has a CPU kernel for it: it writes device memory itself, without a copy.
  std::optional<c10::OperatorHandle> out;
  // False when results depend on data, are no tensors, or view an argument.
  bool is_asynchronous = false;
  int generator = -1;         // index of the Generator argument
  int output_mask = -1;       // index of the bool[] that says which results are wanted
  bool is_pointwise = false;  // an operand may be the output
  bool is_foreach = false;    // lists of tensors, which may be parts of one buffer
  bool keeps_shapes = false;  // no results, and the written arguments stay as they are
  // Per argument: numbers whose kind decides the results' dtype while their value decides nothing.
  std::vector<bool> is_number;
  std::vector<bool> written;  // per argument
  std::vector<Return> returns;
  const char* name;

  static OperatorPlan& of(const c10::OperatorHandle& op);
};

struct TensorShape {
  bool defined = false;
  at::ScalarType dtype = at::kFloat;
  c10::SmallVector<std::int64_t, 5> sizes;
  c10::SmallVector<std::int64_t, 5> strides;
};

// What a call with given arguments produces.
struct CallShape {
  // Tensors of the results in order, lists flattened; without those that are arguments.
  std::vector<TensorShape> results;
  std::vector<std::int64_t> list_sizes;  // per return; -1: a tensor
  // New shape per tensor of the written arguments, in order (out= overloads resize).
  std::vector<TensorShape> written;
};

// The layout that torch gives a new result of a pointwise operator: that of its operands, where they agree.
TensorShape pointwise_shape(at::IntArrayRef sizes, at::ScalarType dtype, c10::ArrayRef<at::Tensor> operands);

// Runs the operator's meta kernel (remembered per shape of the arguments).  nullptr when there is none or when it
// refuses the arguments: the CPU kernel then has the say.
std::shared_ptr<const CallShape> shape_of_call(const OperatorPlan& plan, c10::ArrayRef<c10::IValue> arguments);

}  // namespace npu::aten
