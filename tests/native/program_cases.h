// Short ways to write the ops of a decoder down, for tests of sessions.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "plan/program.h"

namespace cpuinfer {

using Matrix = std::shared_ptr<const PackedMatrix>;

inline Norm ones(int64_t width) {
  return {NormKind::kRms, std::vector<float>(static_cast<std::size_t>(width), 1.0f), {}, 1e-5f};
}

inline ValueId embed(Program& program, Matrix table) {
  Op op{OpKind::kEmbed, "embed", {}, {}};
  op.weights = {std::move(table)};
  return program.add(std::move(op))[0];
}

inline std::vector<ValueId> linears(Program& program, const char* name, ValueId x, Norm norm,
                                    std::vector<Matrix> weights, ValueId residual = kNoValue) {
  Op op{OpKind::kLinears, name, {x}, {}};
  op.biases.resize(weights.size());
  op.weights = std::move(weights);
  op.norm = std::move(norm);
  op.residual = residual;
  return program.add(std::move(op));
}

inline ValueId glu(Program& program, ValueId x, Norm norm, Matrix gate, Matrix up) {
  Op op{OpKind::kGlu, "glu", {x}, {}};
  op.weights = {std::move(gate), std::move(up)};
  op.biases.resize(2);
  op.norm = std::move(norm);
  op.activation = Activation::kSilu;
  return program.add(std::move(op))[0];
}

inline ValueId attention(Program& program, const std::vector<ValueId>& qkv, AttentionShape shape) {
  Op op{OpKind::kAttention, "attention", qkv, {}};
  op.attention = std::move(shape);
  op.attention.rope = 0;
  return program.add(std::move(op))[0];
}

}  // namespace cpuinfer
