// npu::npu_mm_all_reduce_base: sum over ranks of products, on every rank.
#include <ATen/ATen.h>

#include "mc2/argument_checks.h"
#include "mc2/dense_product.h"
#include "mc2/fused_call.h"
#include "mc2/int8_all_reduce.h"
#include "mc2/operator_registration.h"
#include "mc2/row_tiles.h"
#include "process_group/tensor_checks.h"

namespace npu::distributed {
namespace {

constexpr const char* kOp = "npu_mm_all_reduce_base";

bool IsFloat(at::ScalarType type) { return type == at::kHalf || type == at::kBFloat16; }

/// What the operator multiplies, adds and scales.
struct Operands {
  const at::Tensor& x1;
  const at::Tensor& x2;
  at::Tensor bias, antiquant_scale, antiquant_offset, x3, dequant_scale, pertoken_scale, comm_scale_1, comm_scale_2;
  int64_t antiquant_group_size;

  bool full_quant() const { return x1.scalar_type() == at::kChar; }
  bool weight_quant() const { return !full_quant() && x2.scalar_type() == at::kChar; }
  int64_t k() const { return x2.size(0); }
  int64_t n() const { return x2.size(1); }
  int64_t rows() const { return c10::multiply_integers(x1.sizes().slice(0, x1.dim() - 1)); }

  at::ScalarType ResultType() const {
    if (!full_quant()) return x1.scalar_type();
    return dequant_scale.scalar_type() == at::kBFloat16 ? at::kBFloat16 : at::kHalf;
  }
  std::vector<int64_t> ResultShape() const {
    std::vector<int64_t> shape = x1.sizes().vec();
    shape.back() = n();
    return shape;
  }

  /// What every rank adds to the sum, in float32: a term may be too large for float16 where the sum is not.
  DenseProduct Product() const;

  void Check() const;
  void CheckFloat() const;
  void CheckWeightQuant() const;
  void CheckFullQuant() const;
  void CheckCommScales() const;
};

DenseProduct Operands::Product() const {
  const at::ScalarType type = x1.scalar_type();
  if (full_quant()) return DenseProduct(at::kFloat, type, x2, {bias}, DecodeScale(dequant_scale));
  if (!weight_quant()) return DenseProduct(at::kFloat, type, x2, {bias}, {});
  if (antiquant_offset.defined() || antiquant_group_size != 0) {
    const at::Tensor weight = DequantisedWeight(x2, antiquant_scale, antiquant_offset, antiquant_group_size);
    return DenseProduct(at::kFloat, type, weight, {bias}, {});
  }
  // int8 is exact in the type of x1, and so is a scale of columns behind the product.
  return DenseProduct(at::kFloat, type, x2.to(type), {bias, /*is_scaled=*/false}, DecodeScale(antiquant_scale));
}

void Operands::Check() const {
  RefuseFloat8(kOp, "x1", x1);
  RefuseFloat8(kOp, "x2", x2);
  MC2_CHECK(x2.dim() == 2, kOp, "x2", "expected 2 dims [k, n], but got the shape ", x2.sizes());
  MC2_CHECK(x1.dim() >= 2, kOp, "x1", "expected 2 dims [m, k] or 3 dims [b, s, k], but got the shape ", x1.sizes());
  MC2_CHECK(x1.size(-1) == k(), kOp, "x2", "expected ", x1.size(-1), " rows, as many as x1 has columns, but got ", k());
  const at::ScalarType type = x1.scalar_type();
  MC2_CHECK(IsFloat(type) || type == at::kChar, kOp, "x1", "expected float16, bfloat16 or int8, but got ", type);
  const int64_t group = antiquant_group_size;
  MC2_CHECK(group == 0 || (group % 32 == 0 && group >= 32 && group <= k() - 1), kOp, "antiquant_group_size",
            "expected 0 or a multiple of 32 in [32, k - 1] with k = ", k(), ", but got ", group);
  if (full_quant()) {
    CheckFullQuant();
  } else if (weight_quant()) {
    CheckWeightQuant();
  } else {
    CheckFloat();
  }
  if (bias.defined()) {
    const at::ScalarType expected = full_quant() ? at::kInt : type;
    MC2_CHECK(bias.dim() == 1 && bias.size(0) == n(), kOp, "bias", "expected the shape [", n(), "], but got ",
              bias.sizes());
    MC2_CHECK(bias.scalar_type() == expected, kOp, "bias", "expected ", expected, " beside x1 of type ", type,
              ", but got ", bias.scalar_type());
  }
  if (x3.defined()) {
    MC2_CHECK(x3.sizes() == ResultShape(), kOp, "x3", "expected the shape of the output, ",
              at::IntArrayRef(ResultShape()), ", but got ", x3.sizes());
    MC2_CHECK(x3.scalar_type() == ResultType(), kOp, "x3", "expected the type of the output, ", ResultType(),
              ", but got ", x3.scalar_type());
  }
  MC2_CHECK(!pertoken_scale.defined() || full_quant(), kOp, "pertoken_scale",
            "it has a meaning for int8 x1 and x2 only, but x1 is ", type);
  CheckCommScales();
}

void Operands::CheckFloat() const {
  MC2_CHECK(x2.scalar_type() == x1.scalar_type(), kOp, "x2", "expected ", x1.scalar_type(),
            " like x1, or int8 with antiquant_scale, but got ", x2.scalar_type());
  const auto refuse = [&](const at::Tensor& tensor, const char* name) {
    MC2_CHECK(!tensor.defined(), kOp, name, "it has a meaning for an int8 x2 only, but x2 is ", x2.scalar_type(),
              "; pass None");
  };
  refuse(antiquant_scale, "antiquant_scale");
  refuse(antiquant_offset, "antiquant_offset");
  refuse(dequant_scale, "dequant_scale");
}

void Operands::CheckWeightQuant() const {
  MC2_CHECK(!dequant_scale.defined(), kOp, "dequant_scale", "it has a meaning for int8 x1 and x2 only, but x1 is ",
            x1.scalar_type(), "; pass antiquant_scale for an int8 x2");
  MC2_CHECK(antiquant_scale.defined(), kOp, "antiquant_scale", "an int8 x2 beside x1 of type ", x1.scalar_type(),
            " needs it");
  const int64_t group = antiquant_group_size;
  const auto check = [&](const at::Tensor& tensor, const char* name) {
    if (!tensor.defined()) return;
    MC2_CHECK(tensor.scalar_type() == x1.scalar_type(), kOp, name, "expected ", x1.scalar_type(), " like x1, but got ",
              tensor.scalar_type());
    if (group == 0) {
      if (tensor.dim() != 1 || tensor.size(0) != 1) CheckRow(kOp, name, tensor, n());
      return;
    }
    const int64_t groups = (k() + group - 1) / group;
    MC2_CHECK(tensor.dim() == 2 && tensor.size(0) == groups && tensor.size(1) == n(), kOp, name,
              "expected the shape [ceil(k / antiquant_group_size), n] = [", groups, ", ", n(), "], but got ",
              tensor.sizes());
  };
  check(antiquant_scale, "antiquant_scale");
  check(antiquant_offset, "antiquant_offset");
}

void Operands::CheckFullQuant() const {
  MC2_CHECK(x2.scalar_type() == at::kChar, kOp, "x2", "expected int8 like x1, but got ", x2.scalar_type());
  MC2_CHECK(!antiquant_scale.defined(), kOp, "antiquant_scale",
            "it has a meaning for a float x1 only, but x1 is int8; pass dequant_scale");
  MC2_CHECK(!antiquant_offset.defined(), kOp, "antiquant_offset",
            "it has a meaning for a float x1 only, but x1 is int8");
  MC2_CHECK(dequant_scale.defined(), kOp, pertoken_scale.defined() ? "pertoken_scale" : "dequant_scale",
            pertoken_scale.defined() ? "it needs dequant_scale beside it" : "int8 x1 and x2 need it");
  const at::ScalarType type = dequant_scale.scalar_type();
  MC2_CHECK(type == at::kLong || type == at::kUInt64 || type == at::kBFloat16 || type == at::kFloat, kOp,
            "dequant_scale", "expected int64, uint64, bfloat16 or float32, but got ", type);
  if (dequant_scale.dim() != 1 || dequant_scale.size(0) != 1) CheckRow(kOp, "dequant_scale", dequant_scale, n());
  if (!pertoken_scale.defined()) return;
  MC2_CHECK(pertoken_scale.dim() == 1 && pertoken_scale.size(0) == rows(), kOp, "pertoken_scale",
            "expected the shape [", rows(), "], one number per row of x1, but got ", pertoken_scale.sizes());
  MC2_CHECK(pertoken_scale.scalar_type() == at::kFloat, kOp, "pertoken_scale", "expected float32, but got ",
            pertoken_scale.scalar_type());
}

void Operands::CheckCommScales() const {
  if (!comm_scale_1.defined() && !comm_scale_2.defined()) return;
  MC2_CHECK(comm_scale_1.defined() && comm_scale_2.defined(), kOp,
            comm_scale_1.defined() ? "comm_quant_scale_2" : "comm_quant_scale_1",
            "comm_quant_scale_1 and comm_quant_scale_2 belong together; pass both or none");
  MC2_CHECK(full_quant(), kOp, "comm_quant_scale_1", "it has a meaning for int8 x1 and x2 only, but x1 is ",
            x1.scalar_type());
  const auto check = [&](const at::Tensor& tensor, const char* name) {
    CheckRow(kOp, name, tensor, n());
    MC2_CHECK(tensor.scalar_type() == ResultType(), kOp, name, "expected the type of the output, ", ResultType(),
              ", but got ", tensor.scalar_type());
  };
  check(comm_scale_1, "comm_quant_scale_1");
  check(comm_scale_2, "comm_quant_scale_2");
}

/// The sum over ranks in the type of the terms, tile by tile: one is computed while the one before is summed.
void ReduceTiles(FusedCall& call, const DenseProduct& product, const Operands& operands, const at::Tensor& x1,
                 const at::Tensor& x3, at::Tensor result) {
  const at::Tensor sum = at::empty(result.sizes(), result.options().dtype(at::kFloat));
  const std::vector<RowTile> tiles = RowTiles(x1.size(0), operands.n() * static_cast<int64_t>(sum.element_size()));
  std::vector<FusedCall::Step> steps;
  for (const auto [begin, rows] : tiles) {
    const auto part = [begin = begin, rows = rows](const at::Tensor& all) {
      return all.defined() ? all.narrow(0, begin, rows) : all;
    };
    const at::Tensor tile = part(sum);
    product.Into(tile, part(x1), part(operands.pertoken_scale), part(x3));
    steps.push_back(call.Communicate({sum}, [data = RegionOf(tile)](Collectives& ranks) {
      ranks.AllReduce(ElementType::kFloat32, ReduceKind::kSum, 1.0, data);
    }));
  }
  for (size_t i = 0; i < tiles.size(); ++i) {
    call.WaitFor(steps[i]);
    result.narrow(0, tiles[i].begin, tiles[i].rows).copy_(sum.narrow(0, tiles[i].begin, tiles[i].rows));
  }
}

at::Tensor MmAllReduce(const at::Tensor& x1, const at::Tensor& x2, c10::string_view hcom, c10::string_view reduce_op,
                       const OptionalTensor& bias, const OptionalTensor& antiquant_scale,
                       const OptionalTensor& antiquant_offset, const OptionalTensor& x3,
                       const OptionalTensor& dequant_scale, const OptionalTensor& pertoken_scale,
                       const OptionalTensor& comm_quant_scale_1, const OptionalTensor& comm_quant_scale_2,
                       int64_t antiquant_group_size, int64_t comm_turn, at::OptionalIntArrayRef group_sizes,
                       std::optional<int64_t> /*y_dtype: float8 only*/, std::optional<int64_t> x1_dtype,
                       std::optional<int64_t> x2_dtype, std::optional<int64_t> dequant_scale_dtype,
                       std::optional<int64_t> pertoken_scale_dtype, int64_t /*comm_quant_mode: no effect*/,
                       std::optional<c10::string_view> comm_mode) {
  TORCH_CHECK_NOT_IMPLEMENTED(!x1_dtype && !x2_dtype && !dequant_scale_dtype && !pertoken_scale_dtype, kOp,
                              ": x1_dtype, x2_dtype, dequant_scale_dtype and pertoken_scale_dtype describe float8, "
                              "hifloat8 and float4 tensors, which this version does not support; pass None");
  const Operands operands{x1,
                          x2,
                          OrUndefined(bias),
                          OrUndefined(antiquant_scale),
                          OrUndefined(antiquant_offset),
                          OrUndefined(x3),
                          OrUndefined(dequant_scale),
                          OrUndefined(pertoken_scale),
                          OrUndefined(comm_quant_scale_1),
                          OrUndefined(comm_quant_scale_2),
                          antiquant_group_size};
  operands.Check();
  CheckReduceOp(kOp, reduce_op);
  CheckCommTurn(kOp, comm_turn);
  CheckCommMode(kOp, comm_mode);
  MC2_CHECK(!group_sizes || group_sizes->empty() || group_sizes->size() == 3, kOp, "group_sizes",
            "expected no or 3 numbers, but got ", group_sizes->size());
  Communicator& communicator = RequireCommunicator(kOp, std::string(hcom));
  RequireDevice(kOp,
                {{"x1", x1},
                 {"x2", x2},
                 {"bias", operands.bias},
                 {"antiquant_scale", operands.antiquant_scale},
                 {"antiquant_offset", operands.antiquant_offset},
                 {"x3", operands.x3},
                 {"dequant_scale", operands.dequant_scale},
                 {"pertoken_scale", operands.pertoken_scale},
                 {"comm_quant_scale_1", operands.comm_scale_1},
                 {"comm_quant_scale_2", operands.comm_scale_2}},
                communicator);

  const DenseProduct product = operands.Product();
  at::Tensor result = at::empty(operands.ResultShape(), x1.options().dtype(operands.ResultType()));
  const at::Tensor rows = result.view({operands.rows(), operands.n()});
  const at::Tensor x1_rows = x1.reshape({operands.rows(), operands.k()});
  const at::Tensor x3_rows = operands.x3.defined() ? operands.x3.reshape(rows.sizes()) : at::Tensor();
  const bool sums_int8 = operands.comm_scale_1.defined();
  FusedCall call(
      communicator, "npu::npu_mm_all_reduce_base",
      c10::str(TypeAndShape(result.scalar_type(), result.sizes()), ", summed as ", sums_int8 ? at::kChar : at::kFloat));
  if (sums_int8) {
    Int8AllReduce reduce(call, communicator, operands.comm_scale_1, operands.comm_scale_2);
    for (const auto [begin, count] : RowTiles(rows.size(0), operands.n())) {
      const auto part = [begin = begin, count = count](const at::Tensor& all) {
        return all.defined() ? all.narrow(0, begin, count) : all;
      };
      at::Tensor partial = at::empty({count, operands.n()}, result.options().dtype(at::kFloat));
      product.Into(partial, part(x1_rows), part(operands.pertoken_scale), part(x3_rows));
      reduce.Add(partial, part(rows));
    }
    reduce.Finish();
  } else {
    ReduceTiles(call, product, operands, x1_rows, x3_rows, rows);
  }
  return result;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(npu, m) {
  DefineFusedOperator<&MmAllReduce>(
      m,
      "npu_mm_all_reduce_base(Tensor x1, Tensor x2, str hcom, *, str reduce_op='sum', Tensor? bias=None, "
      "Tensor? antiquant_scale=None, Tensor? antiquant_offset=None, Tensor? x3=None, Tensor? dequant_scale=None, "
      "Tensor? pertoken_scale=None, Tensor? comm_quant_scale_1=None, Tensor? comm_quant_scale_2=None, "
      "int antiquant_group_size=0, int comm_turn=0, int[]? group_sizes=None, int? y_dtype=None, int? x1_dtype=None, "
      "int? x2_dtype=None, int? dequant_scale_dtype=None, int? pertoken_scale_dtype=None, int comm_quant_mode=0, "
      "str? comm_mode=None) -> Tensor");
}

}  // namespace npu::distributed
