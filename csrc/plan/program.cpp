// The checks made while a program is written down.
#include "plan/program.h"

#include <cmath>

#include "core/error.h"

namespace cpuinfer {
namespace {

[[noreturn]] void refuse(const std::string& op, const std::string& what) {
  throw Error(Fault::kUnsupportedModel, op + ": " + what);
}

std::string shape_text(const Weights& w) { return "(" + std::to_string(w.n) + ", " + std::to_string(w.k) + ")"; }

void check_inputs(const Weights& w, int64_t width, const std::string& op) {
  if (w.k != width) refuse(op, "shape " + shape_text(w) + ", expected (*, " + std::to_string(width) + ")");
}

}  // namespace

ValueId Program::new_value(int64_t width, const std::string& name) {
  values_.push_back({width, name});
  return static_cast<ValueId>(values_.size() - 1);
}

int64_t Program::width_of(ValueId id, const std::string& op) const {
  if (id < 0 || static_cast<std::size_t>(id) >= values_.size()) {
    refuse(op, "value " + std::to_string(id) + " does not exist");
  }
  return values_[static_cast<std::size_t>(id)].width;
}

void Program::check_norm(const Norm& norm, int64_t width, const std::string& op) const {
  if (norm.weight.empty()) return;
  if (static_cast<int64_t>(norm.weight.size()) != width) {
    refuse(op, "its norm has " + std::to_string(norm.weight.size()) + " weights, expected " + std::to_string(width));
  }
  if (!(norm.eps >= 0) || !std::isfinite(norm.eps)) {
    refuse(op, "norm epsilon " + std::to_string(norm.eps) + ", expected a finite number of at least 0");
  }
}

ValueId Program::add_embed(const std::string& name, std::shared_ptr<const PackedMatrix> table) {
  if (!table) refuse(name, "no embedding table");
  const ValueId out = new_value(table->view().k, name);
  ops_.push_back({OpKind::kEmbed, name, {}, {out}, {std::move(table)}, {}, kNoValue, {}});
  return out;
}

std::vector<ValueId> Program::add_linears(const std::string& name, ValueId x, Norm norm,
                                          std::vector<std::shared_ptr<const PackedMatrix>> weights, ValueId residual) {
  const int64_t width = width_of(x, name);
  check_norm(norm, width, name);
  if (weights.empty()) refuse(name, "no weights");
  if (residual != kNoValue && weights.size() != 1) refuse(name, "a residual needs exactly one weight");
  std::vector<ValueId> outputs;
  for (const auto& weight : weights) {
    if (!weight) refuse(name, "a weight is missing");
    check_inputs(weight->view(), width, name);
    if (residual != kNoValue && width_of(residual, name) != weight->view().n) {
      refuse(name, "shape " + shape_text(weight->view()) + ", but its residual has width " +
                       std::to_string(width_of(residual, name)));
    }
    outputs.push_back(new_value(weight->view().n, name));
  }
  ops_.push_back({OpKind::kLinears, name, {x}, outputs, std::move(weights), std::move(norm), residual, {}});
  return outputs;
}

ValueId Program::add_glu(const std::string& name, ValueId x, Norm norm, std::shared_ptr<const PackedMatrix> gate,
                         std::shared_ptr<const PackedMatrix> up) {
  const int64_t width = width_of(x, name);
  check_norm(norm, width, name);
  if (!gate || !up) refuse(name, "a weight is missing");
  check_inputs(gate->view(), width, name);
  check_inputs(up->view(), width, name);
  if (gate->view().n != up->view().n) {
    refuse(name, "gate " + shape_text(gate->view()) + " and up " + shape_text(up->view()) + " differ in rows");
  }
  const ValueId out = new_value(gate->view().n, name);
  ops_.push_back({OpKind::kGlu, name, {x}, {out}, {std::move(gate), std::move(up)}, std::move(norm), kNoValue, {}});
  return out;
}

ValueId Program::add_attention(const std::string& name, ValueId q, ValueId k, ValueId v, const AttentionShape& shape) {
  if (shape.heads < 1 || shape.kv_heads < 1 || shape.head_dim < 1 || shape.heads % shape.kv_heads != 0) {
    refuse(name, std::to_string(shape.heads) + " heads, " + std::to_string(shape.kv_heads) + " key-value heads of " +
                     std::to_string(shape.head_dim) + ": heads must be a multiple of key-value heads");
  }
  if (shape.layer < 0) refuse(name, "layer " + std::to_string(shape.layer) + " is negative");
  if (!std::isfinite(shape.scale)) refuse(name, "the score scale is not finite");
  const auto expect = [&](ValueId id, int64_t heads, const char* which) {
    if (width_of(id, name) != heads * shape.head_dim) {
      refuse(name, std::string(which) + " has width " + std::to_string(width_of(id, name)) + ", expected " +
                       std::to_string(heads * shape.head_dim));
    }
  };
  expect(q, shape.heads, "the query");
  expect(k, shape.kv_heads, "the key");
  expect(v, shape.kv_heads, "the value");
  if (static_cast<int64_t>(rope_.inverse_frequency.size()) * 2 > shape.head_dim) {
    refuse(name, "rotates " + std::to_string(rope_.inverse_frequency.size() * 2) + " of " +
                     std::to_string(shape.head_dim) + " dimensions");
  }
  const ValueId out = new_value(shape.heads * shape.head_dim, name);
  ops_.push_back({OpKind::kAttention, name, {q, k, v}, {out}, {}, {}, kNoValue, shape});
  return out;
}

}  // namespace cpuinfer
