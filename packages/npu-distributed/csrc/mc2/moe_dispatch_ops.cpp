// npu::npu_moe_distribute_dispatch and npu_moe_distribute_dispatch_v2: checks, outputs, and the call itself.
#include <ATen/ATen.h>

#include <algorithm>
#include <tuple>

#include "mc2/moe_arguments.h"
#include "mc2/moe_dispatch.h"
#include "mc2/operator_registration.h"
#include "npu/kernels/dtype_argument.h"

namespace npu::distributed {
namespace {

using Outputs = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

struct DispatchArguments {
  MoeGroupArguments group;
  bool second_version = true;
  at::Tensor x, expert_ids;
  OptionalTensor scales, x_active_mask, expert_scales, elastic_info, performance_info;
  int64_t quant_mode = 0, global_bs = 0, expert_token_nums_type = 1;
  int64_t special_experts = 0;
  std::optional<int64_t> y_dtype, x_dtype, scales_dtype;
};

/// How rows travel, and the shape behind `rows` of their scales.
struct Quantisation {
  MoeRowFormat format{};
  at::ScalarType scale_type = at::kFloat;
  std::vector<int64_t> scale_shape;
};

int64_t RoundUp(int64_t number, int64_t unit) { return (number + unit - 1) / unit * unit; }

Quantisation QuantisationOf(const DispatchArguments& a) {
  const char* op = a.group.op();
  const at::ScalarType type = a.x.scalar_type();
  const bool is_packed = type == at::kInt;
  MC2_CHECK(type == at::kBFloat16 || type == at::kHalf || (is_packed && a.second_version), op, "x", "expected ",
            a.second_version ? "bfloat16, float16 or int32 (packed int4)" : "bfloat16 or float16", ", got ", type);
  MC2_CHECK(a.quant_mode >= 0 && a.quant_mode <= (a.second_version ? 5 : 2), op, "quant_mode",
            "expected 0 (none), 1 (static), 2 (dynamic per token)",
            a.second_version ? ", 3 (float8 in groups of 128), 4 or 5 (MX float8)" : "", ", got ", a.quant_mode);
  MC2_CHECK(!is_packed || a.quant_mode == 0, op, "quant_mode", "expected 0 with x of int32, got ", a.quant_mode);

  Quantisation result;
  MoeRowFormat& format = result.format;
  const int64_t columns = a.x.size(1);
  format.in = static_cast<npu_dtype>(type);
  format.columns = columns;
  const auto output = [&](npu_dtype fallback, std::initializer_list<npu_dtype> accepted) {
    format.out = kernels::dtype_argument(op, "y_dtype", a.y_dtype, fallback, accepted);
  };
  switch (a.quant_mode) {
    case 0:
      format.format = NPU_MOE_COPY;
      output(format.in, {format.in});
      format.scale_bytes = is_packed ? 4 : 0;
      break;
    case 1:
      format.format = NPU_MOE_STATIC_INT8;
      output(NPU_INT8, {NPU_INT8});
      break;
    case 2:
      format.format = NPU_MOE_DYNAMIC_INT8;
      output(NPU_INT8, {NPU_INT8});
      format.scale_bytes = 4;
      break;
    case 3:
      format.format = NPU_MOE_GROUP_FLOAT8;
      output(NPU_FLOAT8_E4M3FN, {NPU_FLOAT8_E4M3FN, NPU_FLOAT8_E5M2});
      result.scale_shape = {RoundUp(columns, 128) / 128};
      format.scale_bytes = 4 * result.scale_shape[0];
      break;
    default:
      format.format = NPU_MOE_MX_FLOAT8;
      output(a.quant_mode == 4 ? NPU_FLOAT8_E4M3FN : NPU_FLOAT8_E5M2, {NPU_FLOAT8_E4M3FN, NPU_FLOAT8_E5M2});
      result.scale_type = at::kByte;
      result.scale_shape = {RoundUp(RoundUp(columns, 32) / 32, 2)};
      format.scale_bytes = result.scale_shape[0];
      break;
  }
  format.row_bytes = columns * npu_dtype_size(format.out);
  kernels::dtype_argument(op, "x_dtype", a.x_dtype, format.in, {format.in});
  kernels::dtype_argument(op, "scales_dtype", a.scales_dtype, NPU_FLOAT32, {NPU_FLOAT32});
  return result;
}

void CheckScales(const DispatchArguments& a, const MoePlacement& placement) {
  const char* op = a.group.op();
  const bool is_packed = a.x.scalar_type() == at::kInt;
  MC2_CHECK(Given(a.scales) || !(a.quant_mode == 1 || is_packed), op, "scales", "is needed with ",
            is_packed ? "x of int32" : "quant_mode=1");
  if (!Given(a.scales)) return;
  MC2_CHECK(is_packed || (a.quant_mode >= 1 && a.quant_mode <= 3), op, "scales",
            "has no meaning with quant_mode=", a.quant_mode, "; pass None",
            a.quant_mode == 0 ? ", or quant_mode=1 or 2" : "");
  CheckType(op, "scales", *a.scales, at::kFloat);
  if (is_packed) CheckShape(op, "scales", *a.scales, {a.x.size(0)});
  else CheckShape(op, "scales", *a.scales, {placement.experts + placement.shared_experts, a.x.size(1)});
}

int64_t RowBound(const DispatchArguments& a, const MoePlacement& placement, int64_t most_tokens, int64_t global_bs) {
  const auto rank = static_cast<int>(a.group.ep_rank_id);
  if (!placement.IsShared(rank)) {
    return global_bs * std::min(placement.LocalExperts(rank), a.expert_ids.size(1));
  }
  const int64_t world = placement.world;
  if (!a.second_version && world % placement.shared_ranks == 0) return global_bs / placement.shared_ranks;
  return most_tokens * (RoundUp(world, placement.Replicas()) / placement.Replicas());
}

Outputs Dispatch(const DispatchArguments& a) {
  const char* op = a.group.op();
  MC2_CHECK(a.x.dim() == 2 && a.x.size(1) > 0, op, "x", "x and expert_ids should be 2D, (tokens, hidden), got shape ",
            a.x.sizes());
  MC2_CHECK(a.expert_ids.dim() == 2, op, "expert_ids",
            "x and expert_ids should be 2D, (tokens, experts per token), got shape ", a.expert_ids.sizes());
  CheckExpertIds(op, a.expert_ids);
  MC2_CHECK(a.expert_ids.size(0) == a.x.size(0), op, "expert_ids", "expected as many rows as x has, ", a.x.size(0),
            ", got ", a.expert_ids.size(0));
  MC2_CHECK(a.expert_token_nums_type == 0 || a.expert_token_nums_type == 1, op, "expert_token_nums_type",
            "expected 0 (running sum) or 1 (numbers), got ", a.expert_token_nums_type);
  const MoePlacement placement = CheckPlacement(a.group);
  const Quantisation quantisation = QuantisationOf(a);
  CheckScales(a, placement);
  const int64_t world = placement.world, tokens = a.x.size(0), slots = a.expert_ids.size(1);
  const int64_t most_tokens = CheckGlobalBatch(op, a.global_bs, tokens, world);
  const int64_t global_bs = a.global_bs == 0 ? tokens * world : a.global_bs;
  if (Given(a.expert_scales)) {
    CheckType(op, "expert_scales", *a.expert_scales, at::kFloat);
    CheckShape(op, "expert_scales", *a.expert_scales, a.expert_ids.sizes());
  }
  CheckElastic(op, a.elastic_info, world);
  CheckPerformance(op, a.performance_info, world);
  Communicator& communicator = CheckGroup(a.group);

  MoeTensors tensors(op, communicator);
  MoeDispatch job;
  job.placement = placement;
  job.special_experts = a.special_experts;
  job.tokens = tokens;
  job.slots = slots;
  job.most_tokens = most_tokens;
  job.x = tensors.Data<const std::byte>("x", a.x);
  job.expert_ids = tensors.Data<const int32_t>("expert_ids", a.expert_ids);
  job.mask = CheckMask(op, a.x_active_mask, a.expert_ids, tensors);
  job.expert_scales = tensors.Data<const float>("expert_scales", a.expert_scales);
  job.elastic = tensors.Data<const int32_t>("elastic_info", a.elastic_info);
  job.performance = tensors.Data<int64_t>("performance_info", a.performance_info);
  job.format = quantisation.format;
  job.quant_mode = static_cast<int32_t>(a.quant_mode);
  const float* scales = tensors.Data<const float>("scales", a.scales);
  (a.x.scalar_type() == at::kInt ? job.token_scales : job.smooth) = scales;

  const int64_t local = placement.LocalExperts(communicator.rank());
  job.bound = RowBound(a, placement, most_tokens, global_bs);
  const auto make = [&](at::IntArrayRef shape, at::ScalarType type) {
    return at::empty(shape, a.x.options().dtype(type));
  };
  const at::Tensor expand_x = make({job.bound, a.x.size(1)}, static_cast<at::ScalarType>(quantisation.format.out));
  std::vector<int64_t> scale_shape = {job.bound};
  scale_shape.insert(scale_shape.end(), quantisation.scale_shape.begin(), quantisation.scale_shape.end());
  const at::Tensor dynamic_scales = make(scale_shape, quantisation.scale_type);
  const at::Tensor expert_token_nums = make({local}, at::kLong);
  job.ep_recv_length = world * local;
  if (!a.second_version && Given(a.expert_scales)) job.ep_recv_length += 2 * global_bs * slots * (world / 8);
  const at::Tensor ep_recv_counts = make({job.ep_recv_length}, at::kInt);
  const at::Tensor tp_recv_counts = make({a.group.tp_world_size}, at::kInt);
  const at::Tensor expand_scales = make({job.bound}, at::kFloat);
  job.assist_count = std::max(tokens * slots, job.bound * 128);
  const at::Tensor metadata = make({a.second_version ? job.assist_count : tokens * slots}, at::kInt);

  job.expand_x = tensors.Data<std::byte>("expand_x", expand_x);
  job.dynamic_scales = tensors.Data<std::byte>("dynamic_scales", dynamic_scales);
  job.scale_stride = static_cast<int64_t>(dynamic_scales.element_size());
  for (const int64_t size : quantisation.scale_shape) job.scale_stride *= size;
  (a.second_version ? job.assist_info : job.ordinals) = tensors.Data<int32_t>("expand_idx", metadata);
  job.expert_token_nums = tensors.Data<int64_t>("expert_token_nums", expert_token_nums);
  job.cumulative_nums = a.expert_token_nums_type == 0;
  job.ep_recv_counts = tensors.Data<int32_t>("ep_recv_counts", ep_recv_counts);
  job.tp_recv_counts = tensors.Data<int32_t>("tp_recv_counts", tp_recv_counts);
  job.expand_scales = tensors.Data<float>("expand_scales", expand_scales);
  const at::Tensor scratch = make({static_cast<int64_t>(job.scratch_bytes())}, at::kByte);
  job.scratch = tensors.Data<std::byte>("scratch", scratch);

  FusedCall call(communicator, a.group.label, "");
  call.Communicate(tensors.all(), [job](Collectives& group) { job.Run(group); });
  call.Join();
  return {expand_x, dynamic_scales, metadata, expert_token_nums, ep_recv_counts, tp_recv_counts, expand_scales};
}

Outputs DispatchV1(const at::Tensor& x, const at::Tensor& expert_ids, c10::string_view group_ep, int64_t ep_world_size,
                   int64_t ep_rank_id, int64_t moe_expert_num, const OptionalTensor& scales,
                   const OptionalTensor& x_active_mask, const OptionalTensor& expert_scales,
                   c10::string_view /*group_tp*/, int64_t tp_world_size, int64_t /*tp_rank_id*/,
                   int64_t expert_shard_type, int64_t shared_expert_num, int64_t shared_expert_rank_num,
                   int64_t quant_mode, int64_t global_bs, int64_t expert_token_nums_type) {
  DispatchArguments a;
  a.group = {"npu::npu_moe_distribute_dispatch",
             std::string(group_ep),
             ep_world_size,
             ep_rank_id,
             moe_expert_num,
             tp_world_size,
             expert_shard_type,
             shared_expert_num,
             shared_expert_rank_num,
             true};
  a.second_version = false;
  a.x = x;
  a.expert_ids = expert_ids;
  a.scales = scales;
  a.x_active_mask = x_active_mask;
  a.expert_scales = expert_scales;
  a.quant_mode = quant_mode == 0 && Given(scales) ? 1 : quant_mode;  // scales alone make rows int8 in this version
  a.global_bs = global_bs;
  a.expert_token_nums_type = expert_token_nums_type;
  return Dispatch(a);
}

Outputs DispatchV2(const at::Tensor& x, const at::Tensor& expert_ids, c10::string_view group_ep, int64_t ep_world_size,
                   int64_t ep_rank_id, int64_t moe_expert_num, const OptionalTensor& scales,
                   const OptionalTensor& x_active_mask, const OptionalTensor& expert_scales,
                   const OptionalTensor& elastic_info, const OptionalTensor& performance_info,
                   c10::string_view /*group_tp*/, int64_t tp_world_size, int64_t /*tp_rank_id*/,
                   int64_t expert_shard_type, int64_t shared_expert_num, int64_t shared_expert_rank_num,
                   int64_t quant_mode, int64_t global_bs, int64_t expert_token_nums_type, c10::string_view comm_alg,
                   int64_t zero_expert_num, int64_t copy_expert_num, int64_t const_expert_num,
                   std::optional<int64_t> y_dtype, std::optional<int64_t> x_dtype,
                   std::optional<int64_t> scales_dtype) {
  DispatchArguments a;
  a.group = {"npu::npu_moe_distribute_dispatch_v2",
             std::string(group_ep),
             ep_world_size,
             ep_rank_id,
             moe_expert_num,
             tp_world_size,
             expert_shard_type,
             shared_expert_num,
             shared_expert_rank_num,
             false};
  a.x = x;
  a.expert_ids = expert_ids;
  a.scales = scales;
  a.x_active_mask = x_active_mask;
  a.expert_scales = expert_scales;
  a.elastic_info = elastic_info;
  a.performance_info = performance_info;
  a.quant_mode = quant_mode;
  a.global_bs = global_bs;
  a.expert_token_nums_type = expert_token_nums_type;
  CheckAlgorithm(a.group.op(), comm_alg);
  CheckNotNegative(a.group.op(), "zero_expert_num", zero_expert_num);
  CheckNotNegative(a.group.op(), "copy_expert_num", copy_expert_num);
  CheckNotNegative(a.group.op(), "const_expert_num", const_expert_num);
  a.special_experts = zero_expert_num + copy_expert_num + const_expert_num;
  a.y_dtype = y_dtype;
  a.x_dtype = x_dtype;
  a.scales_dtype = scales_dtype;
  return Dispatch(a);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(npu, m) {
  DefineFusedOperator<&DispatchV1>(
      m,
      "npu_moe_distribute_dispatch(Tensor x, Tensor expert_ids, str group_ep, int ep_world_size, int ep_rank_id, "
      "int moe_expert_num, *, Tensor? scales=None, Tensor? x_active_mask=None, Tensor? expert_scales=None, "
      "str group_tp=\"\", int tp_world_size=0, int tp_rank_id=0, int expert_shard_type=0, int shared_expert_num=1, "
      "int shared_expert_rank_num=0, int quant_mode=0, int global_bs=0, int expert_token_nums_type=1) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  DefineFusedOperator<&DispatchV2>(
      m,
      "npu_moe_distribute_dispatch_v2(Tensor x, Tensor expert_ids, str group_ep, int ep_world_size, int ep_rank_id, "
      "int moe_expert_num, *, Tensor? scales=None, Tensor? x_active_mask=None, Tensor? expert_scales=None, "
      "Tensor? elastic_info=None, Tensor? performance_info=None, str group_tp=\"\", int tp_world_size=0, "
      "int tp_rank_id=0, int expert_shard_type=0, int shared_expert_num=1, int shared_expert_rank_num=0, "
      "int quant_mode=0, int global_bs=0, int expert_token_nums_type=1, str comm_alg=\"\", int zero_expert_num=0, "
      "int copy_expert_num=0, int const_expert_num=0, int? y_dtype=None, int? x_dtype=None, int? scales_dtype=None) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

}  // namespace npu::distributed
