#include "process_group/tensor_checks.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <c10/util/Half.h>

#include <numeric>
#include <optional>

namespace npu::distributed {
namespace {

std::optional<ElementType> Lookup(at::ScalarType type) {
  switch (type) {
    case at::kChar:
      return ElementType::kInt8;
    case at::kByte:
      return ElementType::kUInt8;
    case at::kShort:
      return ElementType::kInt16;
    case at::kUInt16:
      return ElementType::kUInt16;
    case at::kInt:
      return ElementType::kInt32;
    case at::kUInt32:
      return ElementType::kUInt32;
    case at::kLong:
      return ElementType::kInt64;
    case at::kUInt64:
      return ElementType::kUInt64;
    case at::kHalf:
      return ElementType::kFloat16;
    case at::kBFloat16:
      return ElementType::kBFloat16;
    case at::kFloat:
      return ElementType::kFloat32;
    case at::kDouble:
      return ElementType::kFloat64;
    case at::kBool:
      return ElementType::kBool;
    case at::kFloat8_e4m3fn:
      return ElementType::kFloat8E4M3;
    case at::kFloat8_e5m2:
      return ElementType::kFloat8E5M2;
    default:
      return std::nullopt;
  }
}

/// Of a tensor that CheckTensor has passed.
LayoutSet LayoutsOf(const at::Tensor& tensor) {
  LayoutSet layouts = tensor.is_contiguous() ? kContiguous : 0;
  if (tensor.dim() == 4 && tensor.is_contiguous(at::MemoryFormat::ChannelsLast)) layouts |= kChannelsLast;
  if (tensor.dim() == 5 && tensor.is_contiguous(at::MemoryFormat::ChannelsLast3d)) layouts |= kChannelsLast3d;
  return layouts;
}

}  // namespace

void CheckTensor(const at::Tensor& tensor) {
  TORCH_CHECK(tensor.layout() == at::kStrided && tensor.device().type() == c10::DeviceType::PrivateUse1,
              "Tensors must be NPU and dense, but got a ", tensor.layout(), " tensor on ", tensor.device());
  TORCH_CHECK(tensor.is_contiguous(tensor.suggest_memory_format()), "Tensors must be contiguous, but got sizes ",
              tensor.sizes(), " with strides ", tensor.strides(), "; call .contiguous() first");
  TORCH_CHECK(Lookup(tensor.scalar_type()).has_value(),
              "Unsupported data type for HCCL process group: ", tensor.scalar_type());
}

void CheckTensorList(const std::vector<at::Tensor>& tensors, const at::Tensor& like) {
  TORCH_CHECK(!tensors.empty(), "Tensor list must be nonempty");
  for (const at::Tensor& tensor : tensors) {
    CheckTensor(tensor);
    TORCH_CHECK_TYPE(tensor.scalar_type() == like.scalar_type(), "Tensors must have identical type, but got ",
                     tensor.scalar_type(), " and ", like.scalar_type());
  }
  CheckDevice(tensors, like.device().index());
}

void CheckDevice(const std::vector<at::Tensor>& tensors, int device) {
  for (const at::Tensor& tensor : tensors) {
    TORCH_CHECK(tensor.device().index() == device,
                "ProcessGroupHCCL support one device per process only: this call has tensors on npu:", device,
                " and npu:", static_cast<int>(tensor.device().index()), "; move them to one device first");
  }
}

void CheckSameLayout(const char* op, const Region& from, const Region& to) {
  TORCH_CHECK(SameLayout(from.layouts, to.layouts), op,
              ": Tensors must be contiguous or share one memory format, but the input is ", LayoutName(from.layouts),
              " and the output ", LayoutName(to.layouts), "; call .contiguous() first");
}

ElementType ElementTypeOf(const at::Tensor& tensor) { return *Lookup(tensor.scalar_type()); }

Region RegionOf(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return {};
  return {tensor.data_ptr(), tensor.nbytes(), LayoutsOf(tensor)};
}

std::vector<Region> RegionsOf(const std::vector<at::Tensor>& tensors) {
  std::vector<Region> regions;
  regions.reserve(tensors.size());
  for (const at::Tensor& tensor : tensors) regions.push_back(RegionOf(tensor));
  return regions;
}

/// `parts` views of `tensor`, one below the other along dimension 0, as regions.
std::vector<Region> EqualParts(const at::Tensor& tensor, int parts) {
  std::vector<Region> regions(static_cast<size_t>(parts));
  const size_t bytes = tensor.nbytes() / static_cast<size_t>(parts);
  if (bytes == 0) return regions;
  auto* base = static_cast<std::byte*>(tensor.data_ptr());
  const LayoutSet layouts = LayoutsOf(tensor);
  for (size_t i = 0; i < regions.size(); ++i) regions[i] = {base + i * bytes, bytes, layouts};
  return regions;
}

/// Parts of `tensor` with the given numbers of rows.
std::vector<Region> SplitParts(const at::Tensor& tensor, const std::vector<int64_t>& splits, int size,
                               const char* what) {
  if (splits.empty()) {
    TORCH_CHECK(tensor.size(0) % size == 0, "Tensor's dim 0 does not divide equally across group size: ", what, " has ",
                tensor.size(0), " rows for ", size, " ranks");
    return EqualParts(tensor, size);
  }
  TORCH_CHECK(splits.size() == static_cast<size_t>(size), "Number of tensor splits not equal to group size: ", what,
              " has ", splits.size(), " splits for ", size, " ranks");
  TORCH_CHECK(std::accumulate(splits.begin(), splits.end(), int64_t{0}) == tensor.size(0),
              "Split sizes doesn't match total dim 0 size of ", what);
  std::vector<Region> regions;
  const size_t row = tensor.size(0) == 0 ? 0 : tensor.nbytes() / static_cast<size_t>(tensor.size(0));
  const LayoutSet layouts = LayoutsOf(tensor);
  size_t offset = 0;
  for (const int64_t rows : splits) {
    TORCH_CHECK(rows >= 0, "Split sizes should not be negative: ", what, " is split into ", splits);
    const size_t bytes = static_cast<size_t>(rows) * row;
    if (bytes == 0) {
      regions.push_back({});
    } else {
      regions.push_back({static_cast<std::byte*>(tensor.data_ptr()) + offset, bytes, layouts});
    }
    offset += bytes;
  }
  return regions;
}

void CheckOwnShare(const char* op, int rank, const at::Tensor& like, const std::vector<Region>& inputs,
                   const std::vector<Region>& outputs) {
  const auto own = static_cast<size_t>(rank);
  const size_t element = like.element_size();
  TORCH_CHECK_VALUE(inputs[own].bytes == outputs[own].bytes, op, ": rank ", rank,
                    " sends itself what it receives, but split ", rank, " of its input has ",
                    inputs[own].bytes / element, " elements and split ", rank, " of its output has ",
                    outputs[own].bytes / element);
  CheckSameLayout(op, inputs[own], outputs[own]);
}

double Reduction::Factor() const {
  if (address == nullptr) return constant;
  switch (factor_type) {
    case ElementType::kFloat16:
      return static_cast<float>(*static_cast<const c10::Half*>(address));
    case ElementType::kBFloat16:
      return static_cast<float>(*static_cast<const c10::BFloat16*>(address));
    case ElementType::kFloat64:
      return *static_cast<const double*>(address);
    default:
      return *static_cast<const float*>(address);
  }
}

Reduction ReductionOf(const c10d::ReduceOp& op, const at::Tensor& tensor) {
  Reduction reduction;
  switch (op.op_) {
    case c10d::ReduceOp::SUM:
      reduction.kind = ReduceKind::kSum;
      break;
    case c10d::ReduceOp::AVG:
      reduction.kind = ReduceKind::kAverage;
      break;
    case c10d::ReduceOp::PRODUCT:
      reduction.kind = ReduceKind::kProduct;
      break;
    case c10d::ReduceOp::MIN:
      reduction.kind = ReduceKind::kMin;
      break;
    case c10d::ReduceOp::MAX:
      reduction.kind = ReduceKind::kMax;
      break;
    case c10d::ReduceOp::BAND:
      TORCH_CHECK(false, "Cannot use ReduceOp.BAND with HCCL");
    case c10d::ReduceOp::BOR:
      TORCH_CHECK(false, "Cannot use ReduceOp.BOR with HCCL");
    case c10d::ReduceOp::BXOR:
      TORCH_CHECK(false, "Cannot use ReduceOp.BXOR with HCCL");
    case c10d::ReduceOp::PREMUL_SUM: {
      const auto floating = [](at::ScalarType type) {
        return type == at::kHalf || type == at::kFloat || type == at::kBFloat16 || type == at::kDouble;
      };
      TORCH_CHECK(floating(tensor.scalar_type()),
                  "PreMulSum Data type must be half, float, bfloat16 or double, but got ", tensor.scalar_type());
      const auto* scale = dynamic_cast<const c10d::PreMulSumSupplement*>(op.supplement_.get());
      TORCH_CHECK(scale != nullptr, "PREMUL_SUM needs a factor: make it with _make_hccl_premul_sum(factor)");
      reduction.kind = ReduceKind::kPremulSum;
      if (!scale->tensor_factor.defined()) {
        reduction.constant = scale->double_factor;
      } else if (scale->tensor_factor.device().type() == at::kCPU) {
        reduction.constant = scale->tensor_factor.item<double>();
      } else {
        CheckTensor(scale->tensor_factor);
        TORCH_CHECK(floating(scale->tensor_factor.scalar_type()),
                    "the factor of PREMUL_SUM must be half, float, "
                    "bfloat16 or double, but got ",
                    scale->tensor_factor.scalar_type());
        reduction.factor = scale->tensor_factor;
        reduction.address = scale->tensor_factor.data_ptr();
        reduction.factor_type = ElementTypeOf(scale->tensor_factor);
      }
      break;
    }
    default:
      TORCH_CHECK(false, "Unhandled ReduceOp ", static_cast<int>(op.op_));
  }
  TORCH_CHECK(tensor.scalar_type() != at::kFloat8_e4m3fn && tensor.scalar_type() != at::kFloat8_e5m2,
              "Unsupported data type for a reduction with HCCL: ", tensor.scalar_type());
  return reduction;
}

Reduction ScatteredReductionOf(const c10d::ReduceOp& op, const at::Tensor& tensor) {
  TORCH_CHECK(tensor.scalar_type() != at::kByte && tensor.scalar_type() != at::kBool,
              "Unsupported data type for reduce_scatter with HCCL: ", tensor.scalar_type(),
              "; convert the tensor, for example to int32");
  return ReductionOf(op, tensor);
}

}  // namespace npu::distributed
