#pragma once
// What the generated kernels of structured ops share (codegen/generate.py writes them, one per ATen overload).
//
// A structured op runs its meta() on the npu tensors of the dispatching thread: shape, dtype and error rules are
// upstream's own code.  meta() reports its outputs through set_output_*; StructuredMeta allocates or checks them.  Then
// the op is queued, and the engine calls at::cpu::<op>_out on aliases.  Meta never sees an alias: TensorIterator reads
// data while it is built for the CPU, which would be too early.

#include <ATen/MemoryOverlap.h>
#include <ATen/TensorIterator.h>
#include <ATen/TensorMeta.h>
#include <ATen/core/IListRef.h>
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/op_registration/adaption.h>
#include <c10/core/Scalar.h>

#include <array>
#include <initializer_list>
#include <optional>
#include <type_traits>
#include <utility>

#include "empty.h"
#include "launch_op.h"

namespace npu::aten {

// ---- outputs as meta() sets them -------------------------------------------------------------------------------

enum class OutputMode : std::uint8_t {
  kAllocate,  // functional: a new tensor
  // Functional ops whose meta() shrinks the output after setting it (mse_loss with a reduction): memory is allocated
  // when the final size is known.
  kAllocateLate,
  kInPlace,  // must fit as it is
  kResize    // out=: resized with upstream's warning
};

namespace detail {
// Applies one set_output_* call to `out` by the rules of `mode`.
void set_output(OutputMode mode, at::Tensor& out, at::IntArrayRef sizes, at::IntArrayRef strides,
                const at::TensorOptions& options);
// Gives an output of kAllocateLate the memory its final size needs.
void allocate_late_output(at::Tensor& out);
}  // namespace detail

// `Structured` is at::meta::structured_<op>; N its number of outputs.
template <class Structured, size_t N>
class StructuredMeta final : public Structured {
 public:
  explicit StructuredMeta(OutputMode mode = OutputMode::kAllocate) : mode_(mode) {}
  StructuredMeta(OutputMode mode, std::array<at::Tensor, N> outputs) : mode_(mode), outputs_(std::move(outputs)) {}

  void set_output_strided(int64_t i, at::IntArrayRef sizes, at::IntArrayRef strides,
                          at::TensorOptions options) override {
    set_output(i, sizes, strides, options);
  }
  void set_output_raw_strided(int64_t i, at::IntArrayRef sizes, at::IntArrayRef strides,
                              at::TensorOptions options) override {
    set_output(i, sizes, strides, options);
  }
  const at::Tensor& maybe_get_output(int64_t i) override { return outputs_[static_cast<size_t>(i)]; }

  // After meta(): the i-th output, ready for the kernel.
  at::Tensor& output(size_t i) {
    if (C10_UNLIKELY(mode_ == OutputMode::kAllocateLate)) detail::allocate_late_output(outputs_[i]);
    return outputs_[i];
  }

 private:
  void set_output(int64_t i, at::IntArrayRef sizes, at::IntArrayRef strides, const at::TensorOptions& options) {
    detail::set_output(mode_, outputs_[static_cast<size_t>(i)], sizes, strides, options);
    // The iterator's own method comes second: it asks maybe_get_output() for the result.
    if constexpr (std::is_base_of_v<at::TensorIteratorBase, Structured>) {
      Structured::set_output_raw_strided(i, sizes, strides, options);
    }
  }

  OutputMode mode_;
  std::array<at::Tensor, N> outputs_;
};

// Upstream's check, with its text, for the ops that ask for it: all tensors live on one device.
class SameDevice {
 public:
  explicit SameDevice(const char* op) : op_(op) {}
  template <class Tensors>
  SameDevice& check(const Tensors& tensors, const char* argument) {
    c10::impl::check_and_update_common_device(common_, tensors, op_, argument);
    return *this;
  }

 private:
  const char* op_;
  std::optional<c10::Device> common_;
};

// Refuses outputs that share part of their memory with an input.  The engine's aliases have storages of their own, so
// the kernels cannot see it.  Ops built on TensorIterator have checked it in meta().
inline void check_outputs_apart(std::initializer_list<const at::Tensor*> outputs,
                                std::initializer_list<const at::Tensor*> inputs) {
  for (const at::Tensor* out : outputs) {
    for (const at::Tensor* in : inputs) {
      if (in->defined()) at::assert_no_partial_overlap(*out, *in);
    }
  }
}

// Operands of a matrix product must share their dtype, whatever the CPU computes in.
void check_product_dtypes(std::initializer_list<const at::Tensor*> operands);

// index.Tensor counts masks and moves indices inside meta() and again inside the kernel.  Masks (their count is data:
// this waits for it), int32 and CPU indices become int64 npu indices once, here.
c10::List<std::optional<at::Tensor>> indices_on_device(const at::Tensor& self,
                                                       const c10::List<std::optional<at::Tensor>>& indices);

// Gives `out` dense strides in the memory format that `input` suggests, as some CPU kernels do behind meta()'s back.
void take_memory_format(at::Tensor& out, const at::Tensor& input);

// ---- fast path of pointwise ops --------------------------------------------------------------------------------
// Operands of one dtype and one dense layout need no TensorIterator: the result looks like any of them.  Building
// an iterator costs more than everything else a small op does on the dispatching thread.

enum class DtypeClass : std::uint8_t {
  kFloating,  // half, bfloat16, float, double
  kReal,      // these and the signed integers and uint8
  kIntegral   // integers and bool
};

struct PointwiseRule {
  DtypeClass dtypes;
  // Whether one operand may be a 0-dim CPU tensor (a Python number) that leaves the result's dtype alone.
  bool cpu_scalars;
};

// The operand that the result looks like, or nullptr when meta() has to decide.
const at::Tensor* pointwise_lead(PointwiseRule rule, std::initializer_list<const at::Tensor*> operands);

// Whether the op may write `out`, given (out=) or one of the operands (in-place), without asking meta().
bool pointwise_fits(PointwiseRule rule, const at::Tensor& out, std::initializer_list<const at::Tensor*> operands);

// Scalars that neither promote `dtype` nor break a check of meta(): a number of the same or a lower kind, no bool.
inline bool scalar_keeps(at::ScalarType dtype, const at::Scalar& s) {
  return s.isIntegral(/*includeBool=*/false) || (s.isFloatingPoint() && c10::isFloatingType(dtype));
}
inline bool scalar_keeps(at::ScalarType dtype, const std::optional<at::Scalar>& s) {
  return !s.has_value() || scalar_keeps(dtype, *s);
}
template <class... Scalars>
bool scalars_keep(at::ScalarType dtype, const Scalars&... scalars) {
  return (scalar_keeps(dtype, scalars) && ...);
}

// Uninitialised, with the sizes, strides and device of `lead`.
at::Tensor empty_like_lead(const at::Tensor& lead, at::ScalarType dtype);
inline at::Tensor empty_like_lead(const at::Tensor& lead) { return empty_like_lead(lead, lead.scalar_type()); }

}  // namespace npu::aten
