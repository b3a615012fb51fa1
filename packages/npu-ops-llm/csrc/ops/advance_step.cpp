// npu_advance_step_flashattn: a few integers per sequence.  Fake: src/npu_ops_llm/advance_step.py.
#include <algorithm>
#include <cstdio>

#include "npu/kernels/aliasing.h"

namespace npu::ops_llm {
namespace {

using namespace npu::kernels;

constexpr const char* kOp = "npu_advance_step_flashattn";

/// int64 elements at any stride.
struct Vector {
  int64_t* data;
  int64_t stride;

  int64_t& operator[](int64_t i) const { return data[i * stride]; }
};

struct Matrix {
  const int64_t* data;
  int64_t row_stride, column_stride;

  int64_t at(int64_t row, int64_t column) const { return data[row * row_stride + column * column_stride]; }
};

Vector vector_of(const Tensor& tensor) { return {static_cast<int64_t*>(tensor.data_ptr()), tensor.strides()[0]}; }

Matrix matrix_of(const Tensor& tensor) {
  return {static_cast<const int64_t*>(tensor.data_ptr()), tensor.strides()[0], tensor.strides()[1]};
}

struct AdvanceTask {
  Vector input_tokens, input_positions, seq_lens, slot_mapping;
  Matrix sampled, block_tables, spec_token;
  Vector accepted;
  int64_t sequences, queries, block_size, blocks;
  int64_t tokens;  // per sequence: 1, with speculation 1 + the number of speculated ones
  bool speculative;

  /// Where element `e` of sequence `row` goes.
  int64_t position(int64_t row, int64_t e) const {
    if (!speculative) return seq_lens[row];
    // Unsigned, because any bits may come: the caller checks the result.
    return static_cast<int64_t>(static_cast<uint64_t>(input_positions[e]) + static_cast<uint64_t>(accepted[row]) + 1);
  }

  int64_t slot(int64_t row, int64_t position) const {
    return block_tables.at(row, position / block_size) * block_size + position % block_size;
  }

  /// The sampled token before the first minimum of the row and a final -1.
  int64_t last_token(int64_t row) const {
    int64_t least = -1, before = sampled.at(row, tokens - 1);
    for (int64_t i = tokens - 1; i >= 0; --i) {
      int64_t token = sampled.at(row, i);
      if (token > least) continue;
      least = token;
      before = i > 0 ? sampled.at(row, i - 1) : -1;
    }
    return before;
  }
};

npu_status run_advance(void* payload, npu_error* error) {
  const auto& task = *static_cast<const AdvanceTask*>(payload);
  // Before anything is written.
  for (int64_t row = 0; row < task.queries; ++row) {
    for (int64_t e = row * task.tokens; e < (row + 1) * task.tokens; ++e) {
      int64_t position = task.position(row, e);
      if (position >= 0 && position / task.block_size < task.blocks) continue;
      std::snprintf(error->message, sizeof(error->message),
                    "argument block_tables: position %lld of sequence %lld is outside its %lld blocks of %lld tokens",
                    static_cast<long long>(position), static_cast<long long>(row), static_cast<long long>(task.blocks),
                    static_cast<long long>(task.block_size));
      return NPU_ERROR_INDEX;
    }
  }
  for (int64_t row = 0; row < task.queries; ++row) {
    for (int64_t i = 0; i < task.tokens; ++i) {
      int64_t e = row * task.tokens + i, position = task.position(row, e);
      if (i > 0) task.input_tokens[e] = task.spec_token.at(row, i - 1);
      else task.input_tokens[e] = task.speculative ? task.last_token(row) : task.sampled.at(row, 0);
      task.input_positions[e] = position;
      task.seq_lens[e] = position + 1;
      task.slot_mapping[e] = task.slot(row, position);
    }
  }
  for (int64_t row = task.queries; row < task.sequences; ++row) {
    task.input_tokens[row] = 0;
    task.input_positions[row] = 0;
    task.slot_mapping[row] = -1;
  }
  return NPU_OK;
}

void check_tensor(const Device& device, const char* argument, const Tensor& tensor, Sizes sizes, const char* meaning) {
  check_same_device(kOp, device, argument, tensor);
  check_dtype(kOp, argument, tensor, {NPU_INT64});
  check_sizes(kOp, argument, tensor, sizes, meaning);
}

void advance_step(const Tensor& input_tokens, const Tensor& sampled_token_ids, const Tensor& input_positions,
                  const Tensor& seq_lens, const Tensor& slot_mapping, const Tensor& block_tables, int64_t num_seqs,
                  int64_t num_queries, int64_t block_size, OptionalTensor spec_token, OptionalTensor accepted_num) {
  Device device = device_of(input_tokens);
  NPU_CHECK_ARG(num_queries >= 0 && num_seqs >= num_queries, kOp, "num_queries",
                "expected 0 <= num_queries <= num_seqs (", num_seqs, "), got ", num_queries);
  NPU_CHECK_ARG(block_size > 0, kOp, "block_size", "expected a positive number, got ", block_size);
  const bool speculative = spec_token.has_value();
  NPU_CHECK_ARG(speculative == accepted_num.has_value(), kOp, speculative ? "accepted_num" : "spec_token",
                "expected spec_token and accepted_num together or neither, got None");
  int64_t tokens = 1;
  if (speculative) {
    NPU_CHECK_ARG(spec_token->dim() == 2, kOp, "spec_token", "expected shape (num_seqs, k), got ",
                  shape_text(spec_token->sizes()));
    NPU_CHECK_ARG(num_seqs == num_queries, kOp, "num_queries", "expected num_seqs (", num_seqs,
                  ") with spec_token, got ", num_queries);
    tokens += spec_token->size(1);
    int64_t speculated[] = {num_seqs, tokens - 1};
    check_tensor(device, "spec_token", *spec_token, Sizes(speculated, 2), "(num_seqs, k)");
    check_tensor(device, "accepted_num", *accepted_num, Sizes(&num_seqs, 1), "(num_seqs,)");
  }
  int64_t flat = num_seqs * tokens;
  const char* meaning = speculative ? "(num_seqs * (1 + k),)" : "(num_seqs,)";
  for (auto [name, tensor] : {std::pair{"input_tokens", &input_tokens},
                              {"input_positions", &input_positions},
                              {"seq_lens", &seq_lens},
                              {"slot_mapping", &slot_mapping}}) {
    check_tensor(device, name, *tensor, Sizes(&flat, 1), meaning);
    check_writable(kOp, name, *tensor);
  }
  int64_t sampled[] = {num_queries, tokens};
  check_tensor(device, "sampled_token_ids", sampled_token_ids, Sizes(sampled, 2),
               speculative ? "(num_seqs, 1 + k)" : "(num_queries, 1)");
  NPU_CHECK_ARG(block_tables.dim() == 2, kOp, "block_tables", "expected shape (num_seqs, blocks), got ",
                shape_text(block_tables.sizes()));
  int64_t tables[] = {num_seqs, block_tables.size(1)};
  check_tensor(device, "block_tables", block_tables, Sizes(tables, 2), "(num_seqs, blocks)");
  if (num_seqs == 0) return;

  AdvanceTask task{vector_of(input_tokens),
                   vector_of(input_positions),
                   vector_of(seq_lens),
                   vector_of(slot_mapping),
                   matrix_of(sampled_token_ids),
                   matrix_of(block_tables),
                   speculative ? matrix_of(*spec_token) : Matrix{},
                   speculative ? vector_of(*accepted_num) : Vector{},
                   num_seqs,
                   num_queries,
                   block_size,
                   tables[1],
                   tokens,
                   speculative};
  auto maybe = [](const OptionalTensor& tensor) {
    return tensor.has_value() ? reads_span(*tensor) : npu_access{nullptr, 0, 0, 0};
  };
  launch(device, "npu::npu_advance_step_flashattn", run_advance, task,
         {reads_span(sampled_token_ids), reads_span(block_tables), maybe(spec_token), maybe(accepted_num),
          writes_span(input_tokens), writes_span(input_positions), writes_span(seq_lens), writes_span(slot_mapping)});
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(npu, m) {
  m.def(
      "npu_advance_step_flashattn(Tensor(a!) input_tokens, Tensor sampled_token_ids, Tensor(b!) input_positions, "
      "Tensor(c!) seq_lens, Tensor(d!) slot_mapping, Tensor block_tables, int num_seqs, int num_queries, int "
      "block_size, *, Tensor? spec_token=None, Tensor? accepted_num=None) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(npu, PrivateUse1, m) { m.impl("npu_advance_step_flashattn", TORCH_BOX(&advance_step)); }

STABLE_TORCH_LIBRARY_IMPL(npu, CPU, m) { m.impl("npu_advance_step_flashattn", TORCH_BOX(&advance_step)); }

}  // namespace npu::ops_llm
