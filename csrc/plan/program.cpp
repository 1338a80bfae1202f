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

void check_shape(const Weights& w, int64_t n, int64_t k, const std::string& op) {
  if (w.n == n && w.k == k) return;
  refuse(op, "shape " + shape_text(w) + ", expected (" + std::to_string(n) + ", " + std::to_string(k) + ")");
}

void check_norm(const Norm& norm, int64_t width, const std::string& op) {
  if (norm.kind == NormKind::kNone) return;
  const auto wanted = static_cast<std::size_t>(width);
  if (norm.weight.size() != wanted) {
    refuse(op, "its norm has " + std::to_string(norm.weight.size()) + " weights, expected " + std::to_string(width));
  }
  if (!norm.bias.empty() && (norm.kind != NormKind::kLayer || norm.bias.size() != wanted)) {
    refuse(op, "its norm has " + std::to_string(norm.bias.size()) + " biases, expected " +
                   std::to_string(norm.kind == NormKind::kLayer ? width : 0));
  }
  if (!(norm.eps >= 0) || !std::isfinite(norm.eps)) {
    refuse(op, "norm epsilon " + std::to_string(norm.eps) + ", expected a finite number of at least 0");
  }
}

void check_biases(const Op& op) {
  if (op.biases.size() != op.weights.size()) refuse(op.name, "expected one bias, or none, for each weight");
  for (std::size_t i = 0; i < op.weights.size(); ++i) {
    const auto count = static_cast<int64_t>(op.biases[i].size());
    if (count != 0 && count != op.weights[i]->view().n) {
      refuse(op.name, std::to_string(count) + " biases, expected " + std::to_string(op.weights[i]->view().n));
    }
  }
}

std::size_t weights_wanted(OpKind kind) {
  switch (kind) {
    case OpKind::kEmbed: return 1;
    case OpKind::kGlu: return 2;
    case OpKind::kExperts: return 4;
    default: return 0;
  }
}

// Of so many weights, each of so many inputs.
void check_order(const std::vector<int32_t>& order, int64_t weights, int64_t width, const std::string& op) {
  if (order.empty()) return;
  if (static_cast<int64_t>(order.size()) != weights * width) refuse(op, "an input order of another length");
  for (const int32_t i : order) {
    if (i < 0 || i >= width) refuse(op, "input " + std::to_string(i) + " of " + std::to_string(width));
  }
}

}  // namespace

Program::Program(std::vector<Rope> ropes) : ropes_(std::move(ropes)) {
  for (const Rope& rope : ropes_) {
    if (!std::isfinite(rope.magnitude)) refuse("rope", "a magnitude that is not finite");
  }
}

std::vector<ValueId> Program::add(Op op) {
  std::vector<ValueId> outputs;
  for (const int64_t width : check(op)) {
    if (op.residual != kNoValue && width_of(op.residual, op.name) != width) {
      refuse(op.name, std::to_string(width) + " outputs, but its residual has width " +
                          std::to_string(width_of(op.residual, op.name)));
    }
    widths_.push_back(width);
    outputs.push_back(static_cast<ValueId>(widths_.size() - 1));
  }
  op.outputs = outputs;
  ops_.push_back(std::move(op));
  return outputs;
}

int64_t Program::width_of(ValueId id, const std::string& op) const {
  if (id < 0 || static_cast<std::size_t>(id) >= widths_.size()) {
    refuse(op, "value " + std::to_string(id) + " does not exist");
  }
  return widths_[static_cast<std::size_t>(id)];
}

std::vector<int64_t> Program::check(const Op& op) const {
  for (const auto& weight : op.weights) {
    if (!weight) refuse(op.name, "a weight is missing");
  }
  if (op.weights.size() < weights_wanted(op.kind)) refuse(op.name, "a weight is missing");
  switch (op.kind) {
    case OpKind::kEmbed: return check_embed(op);
    case OpKind::kNormalize: {
      const int64_t width = width_of(op.inputs.at(0), op.name);
      if (op.groups < 1 || width % op.groups != 0 || op.norm.kind == NormKind::kNone) {
        refuse(op.name, std::to_string(op.groups) + " groups of a value of width " + std::to_string(width));
      }
      check_norm(op.norm, width / op.groups, op.name);
      return {width};
    }
    case OpKind::kLinears: return check_linears(op);
    case OpKind::kGlu: return check_glu(op);
    case OpKind::kExperts: return check_experts(op);
    case OpKind::kGated:
      if (width_of(op.inputs.at(1), op.name) != 1) refuse(op.name, "expected a gate of width 1");
      return {width_of(op.inputs.at(0), op.name)};
    case OpKind::kAttention: return check_attention(op);
  }
  refuse(op.name, "not an op");
}

std::vector<int64_t> Program::check_embed(const Op& op) const {
  const int64_t width = op.weights[0]->view().k;
  if (op.weights.size() > 1) check_inputs(op.weights[1]->view(), width, op.name);
  if (op.position_offset < 0 || !std::isfinite(op.scale)) refuse(op.name, "a position offset or scale out of range");
  return {width};
}

std::vector<int64_t> Program::check_linears(const Op& op) const {
  const int64_t width = width_of(op.inputs.at(0), op.name);
  check_norm(op.norm, width, op.name);
  check_order(op.input_order, 1, width, op.name);
  if (op.weights.empty()) refuse(op.name, "no weights");
  if (op.residual != kNoValue && op.weights.size() != 1) refuse(op.name, "a residual needs exactly one weight");
  if (!(op.softcap >= 0)) refuse(op.name, "a negative soft cap");
  std::vector<int64_t> widths;
  for (const auto& weight : op.weights) {
    check_inputs(weight->view(), width, op.name);
    widths.push_back(weight->view().n);
  }
  check_biases(op);
  return widths;
}

std::vector<int64_t> Program::check_glu(const Op& op) const {
  const int64_t width = width_of(op.inputs.at(0), op.name);
  const Weights &gate = op.weights[0]->view(), &up = op.weights[1]->view();
  check_norm(op.norm, width, op.name);
  check_order(op.input_order, 1, width, op.name);
  check_inputs(gate, width, op.name);
  check_inputs(up, width, op.name);
  if (gate.n != up.n) refuse(op.name, "gate " + shape_text(gate) + " and up " + shape_text(up) + " differ in rows");
  check_biases(op);
  return {gate.n};
}

std::vector<int64_t> Program::check_experts(const Op& op) const {
  const int64_t width = width_of(op.inputs.at(0), op.name), count = op.experts.count;
  check_norm(op.norm, width, op.name);
  if (count < 1 || op.experts.used < 1 || op.experts.used > count) {
    refuse(op.name, std::to_string(op.experts.used) + " of " + std::to_string(count) + " experts");
  }
  const Weights &gate = op.weights[1]->view(), &down = op.weights[3]->view();
  check_shape(op.weights[0]->view(), count, width, op.name);
  check_inputs(gate, width, op.name);
  check_shape(op.weights[2]->view(), gate.n, width, op.name);
  check_shape(down, count * width, gate.n / count, op.name);
  if (gate.n % (count * kLanes) != 0 || width % kLanes != 0) {
    refuse(op.name, "experts of " + std::to_string(gate.n / count) + " rows on " + std::to_string(width) +
                        " inputs: expected multiples of " + std::to_string(kLanes));
  }
  check_order(op.input_order, count, width, op.name);
  check_order(op.inner_order, count, gate.n / count, op.name);
  return {width};
}

std::vector<int64_t> Program::check_attention(const Op& op) const {
  const AttentionShape& shape = op.attention;
  if (shape.heads < 1 || shape.kv_heads < 1 || shape.head_dim < 1 || shape.heads % shape.kv_heads != 0) {
    refuse(op.name, std::to_string(shape.heads) + " heads, " + std::to_string(shape.kv_heads) + " key-value heads of " +
                        std::to_string(shape.head_dim) + ": heads must be a multiple of key-value heads");
  }
  if (shape.layer < 0) refuse(op.name, "layer " + std::to_string(shape.layer) + " is negative");
  if (!std::isfinite(shape.scale)) refuse(op.name, "the score scale is not finite");
  if (shape.window < 0 || !(shape.softcap >= 0)) refuse(op.name, "a negative window or soft cap");
  if (!shape.slopes.empty() && static_cast<int64_t>(shape.slopes.size()) != shape.heads) {
    refuse(op.name, std::to_string(shape.slopes.size()) + " slopes for " + std::to_string(shape.heads) + " heads");
  }
  const auto expect = [&](std::size_t which, int64_t heads, const char* name) {
    const int64_t width = width_of(op.inputs.at(which), op.name);
    if (width == heads * shape.head_dim) return;
    refuse(op.name, std::string(name) + " has width " + std::to_string(width) + ", expected " +
                        std::to_string(heads * shape.head_dim));
  };
  expect(0, shape.heads, "the query");
  expect(1, shape.kv_heads, "the key");
  expect(2, shape.kv_heads, "the value");
  if (shape.rope >= static_cast<int32_t>(ropes_.size())) refuse(op.name, "a rope that does not exist");
  if (shape.rope >= 0) {
    const auto dims = static_cast<int64_t>(ropes_[static_cast<std::size_t>(shape.rope)].inverse_frequency.size()) * 2;
    if (dims > shape.head_dim) {
      refuse(op.name, "rotates " + std::to_string(dims) + " of " + std::to_string(shape.head_dim) + " dimensions");
    }
  }
  return {shape.heads * shape.head_dim};
}

}  // namespace cpuinfer
