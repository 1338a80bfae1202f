// A model's forward pass as plain data: a flat list of ops over numbered values, checked as it is written down.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/pack.h"

namespace cpuinfer {

using ValueId = int32_t;
constexpr ValueId kNoValue = -1;

enum class NormKind : uint8_t { kNone, kRms, kLayer };

// How an op reads its input; see KernelSet::rms_norm and layer_norm.
struct Norm {
  NormKind kind = NormKind::kNone;
  std::vector<float> weight;  // fp32 [width of the input, or of one of its groups]
  std::vector<float> bias;    // the same, or empty
  float eps = 0;
};

// Rotary positions: pair i of a head turns by position * inverse_frequency[i]; cosines and sines times magnitude.
struct Rope {
  std::vector<double> inverse_frequency;  // [pairs]
  bool interleaved = false;               // pairs are (2 i, 2 i + 1), else (i, i + pairs)
  double magnitude = 1;
};

enum class OpKind : uint8_t { kEmbed, kNormalize, kLinears, kGlu, kExperts, kGated, kAttention };

struct AttentionShape {
  int32_t layer = 0;  // which part of the cache
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  float scale = 1;
  int32_t rope = -1;               // which of the program's; -1: positions are not rotated
  int64_t window = 0;              // positions a query sees, itself included; 0: all before it
  float softcap = 0;               // 0 for none
  std::vector<float> slopes = {};  // one a head, or empty
};

struct ExpertsShape {
  int64_t count = 0;
  int64_t used = 0;
  bool renormalise = false;
};

struct Op {
  OpKind kind;
  std::string name;
  std::vector<ValueId> inputs;   // embed: none; gated: x, gate; attention: q, k, v; others: x
  std::vector<ValueId> outputs;  // linears: one a weight; others: one
  // embed: table, or table and positions; glu: gate, up; experts: router, gate, up, down
  std::vector<std::shared_ptr<const PackedMatrix>> weights = {};
  Norm norm = {};
  ValueId residual = kNoValue;                  // added to the one output; not of embed, glu and attention
  std::vector<std::vector<float>> biases = {};  // linears, glu: one a weight, empty for none
  // linears, glu: input i of the weights is input_order[i] of x; or empty.  experts: [count][width], of each one's gate
  // and up; inner_order [count][inputs of down] is the same of each one's down.
  std::vector<int32_t> input_order = {};
  std::vector<int32_t> inner_order = {};
  Activation activation = Activation::kNone;  // linears, glu, experts
  float softcap = 0;                          // linears
  float scale = 1;                            // embed
  int64_t position_offset = 0;                // embed
  int64_t groups = 1;                         // normalize
  AttentionShape attention = {};
  ExpertsShape experts = {};
};

// The weights, ops and values of a model.  Adding an op throws Error(kUnsupportedModel) naming it when shapes do not
// fit, so a Program that exists can run.
class Program {
 public:
  // Ropes that attention names by their number.
  explicit Program(std::vector<Rope> ropes);

  // Takes an op whose outputs are yet to be made, checks it and returns them.
  std::vector<ValueId> add(Op op);

  const std::vector<Op>& ops() const noexcept { return ops_; }
  const std::vector<int64_t>& widths() const noexcept { return widths_; }  // every value is fp32 [rows][width]
  const std::vector<Rope>& ropes() const noexcept { return ropes_; }

 private:
  int64_t width_of(ValueId id, const std::string& op) const;
  std::vector<int64_t> check(const Op& op) const;  // returns the widths of its outputs
  std::vector<int64_t> check_embed(const Op& op) const;
  std::vector<int64_t> check_linears(const Op& op) const;
  std::vector<int64_t> check_glu(const Op& op) const;
  std::vector<int64_t> check_experts(const Op& op) const;
  std::vector<int64_t> check_attention(const Op& op) const;

  std::vector<Rope> ropes_;
  std::vector<Op> ops_;
  std::vector<int64_t> widths_;
};

}  // namespace cpuinfer
