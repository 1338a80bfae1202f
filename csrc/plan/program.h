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

// Every value is fp32 [rows in this step][width].
struct ValueShape {
  int64_t width;
  std::string name;
};

// How an op reads its input: y = x / rms(x) * weight; an empty weight reads x as it is.
struct Norm {
  std::vector<float> weight;  // fp32 [width of the input]
  float eps = 0;
};

enum class OpKind : uint8_t { kEmbed, kLinears, kGlu, kAttention };

struct AttentionShape {
  int32_t layer = 0;  // which part of the cache
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  float scale = 1;
};

// Rotary positions: pair i of a head turns by position * inverse_frequency[i].
struct Rope {
  std::vector<double> inverse_frequency;  // [pairs]; empty: positions are not rotated
  bool interleaved = false;               // pairs are (2 i, 2 i + 1), else (i, i + pairs)
};

struct Op {
  OpKind kind;
  std::string name;
  std::vector<ValueId> inputs;                               // embed: none; linears, glu: x; attention: q, k, v
  std::vector<ValueId> outputs;                              // linears: one a weight; others: one
  std::vector<std::shared_ptr<const PackedMatrix>> weights;  // glu: gate, up
  Norm norm;
  ValueId residual = kNoValue;  // added to the one output of linears
  AttentionShape attention;
};

// The weights, ops and values of a model.  Each add_ function throws Error(kUnsupportedModel) naming the op when shapes
// do not fit, so a Program that exists can run.
class Program {
 public:
  explicit Program(Rope rope) : rope_(std::move(rope)) {}

  ValueId add_embed(const std::string& name, std::shared_ptr<const PackedMatrix> table);
  std::vector<ValueId> add_linears(const std::string& name, ValueId x, Norm norm,
                                   std::vector<std::shared_ptr<const PackedMatrix>> weights, ValueId residual);
  ValueId add_glu(const std::string& name, ValueId x, Norm norm, std::shared_ptr<const PackedMatrix> gate,
                  std::shared_ptr<const PackedMatrix> up);
  ValueId add_attention(const std::string& name, ValueId q, ValueId k, ValueId v, const AttentionShape& shape);

  const std::vector<Op>& ops() const noexcept { return ops_; }
  const std::vector<ValueShape>& values() const noexcept { return values_; }
  const Rope& rope() const noexcept { return rope_; }

 private:
  ValueId new_value(int64_t width, const std::string& name);
  int64_t width_of(ValueId id, const std::string& op) const;
  void check_norm(const Norm& norm, int64_t width, const std::string& op) const;

  Rope rope_;
  std::vector<Op> ops_;
  std::vector<ValueShape> values_;
};

}  // namespace cpuinfer
