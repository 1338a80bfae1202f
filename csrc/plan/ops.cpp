// What the small ops do with the rows of a step, split among the workers; linear_ops, expert_ops and attention_ops.cpp
// have the others.
#include <cmath>

#include "core/rounding.h"
#include "plan/plan.h"

namespace cpuinfer {

void Plan::run_op(std::size_t index, int worker) noexcept {
  const Op& op = program_.ops()[index];
  switch (op.kind) {
    case OpKind::kEmbed: return run_embed(op, worker);
    case OpKind::kNormalize: return run_normalize(op, worker);
    case OpKind::kLinears: return run_linears(op, nullptr, step_.rows, nullptr, worker);
    case OpKind::kGlu: return run_glu(op, worker);
    case OpKind::kExperts: return run_experts(op, index, worker);
    case OpKind::kGated: return run_gated(op, worker);
    case OpKind::kAttention: return run_attention(op, worker);
  }
}

void Plan::run_embed(const Op& op, int worker) noexcept {
  const int64_t width = op.weights[0]->view().k;
  phases_.run(worker, step_.rows, [&](int64_t row) {
    float* out = row_of(op.outputs[0], row);
    op.weights[0]->read_row(step_.tokens[row], out);
    for (int64_t i = 0; op.scale != 1 && i < width; ++i) out[i] *= op.scale;
    if (op.weights.size() < 2) return;
    float* position = at(own(worker).normed);
    op.weights[1]->read_row(step_.positions[row] + op.position_offset, position);
    kernels_.add(position, width, out);
  });
}

void Plan::normalize(const Norm& norm, const float* x, int64_t width, float* y) noexcept {
  if (norm.kind == NormKind::kRms) return kernels_.rms_norm(x, norm.weight.data(), width, norm.eps, y);
  const float* bias = norm.bias.empty() ? nullptr : norm.bias.data();
  kernels_.layer_norm(x, norm.weight.data(), bias, width, norm.eps, y);
}

void Plan::run_normalize(const Op& op, int worker) noexcept {
  const auto width = static_cast<int64_t>(op.norm.weight.size());
  phases_.run(worker, step_.rows, [&](int64_t row) {
    const float* x = row_of(op.inputs[0], row);
    float* y = row_of(op.outputs[0], row);
    for (int64_t group = 0; group < op.groups; ++group) {
      normalize(op.norm, x + group * width, width, y + group * width);
    }
    add_residual(op, row, 0, op.groups * width, y);
  });
}

void Plan::run_gated(const Op& op, int worker) noexcept {
  const int64_t width = program_.widths()[static_cast<std::size_t>(op.outputs[0])];
  phases_.run(worker, step_.rows, [&](int64_t row) {
    const auto gate = static_cast<double>(*row_of(op.inputs[1], row));
    const auto share = static_cast<float>(1 / (1 + std::exp(-gate)));
    const float* x = row_of(op.inputs[0], row);
    float* y = row_of(op.outputs[0], row);
    for (int64_t i = 0; i < width; ++i) y[i] = x[i] * share;
    add_residual(op, row, 0, width, y);
  });
}

// y[0, count) += the residual's values from `begin` on.
void Plan::add_residual(const Op& op, int64_t row, int64_t begin, int64_t count, float* y) noexcept {
  if (op.residual != kNoValue) kernels_.add(row_of(op.residual, row) + begin, count, y);
}

}  // namespace cpuinfer
