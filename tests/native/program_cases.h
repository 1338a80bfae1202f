// A small Llama of random weights, and short ways to write the ops of a decoder down, for tests of sessions.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
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

// How a block of an encoding's rows begins to be a finite number: fp16 `scale`, small, at these bytes of it.
struct RandomBlocks {
  int64_t values, bytes;
  uint16_t scale;
  std::vector<std::size_t> scales;
};

inline RandomBlocks random_blocks(Encoding encoding) {
  switch (encoding) {
    case Encoding::kInt4: return {32, 18, 0x2666, {0}};      // about 0.025
    case Encoding::kInt8: return {32, 34, 0x1666, {0}};      // about 0.0014
    case Encoding::kQ4K: return {256, 144, 0x0400, {0, 2}};  // 2^-14
    case Encoding::kQ6K: return {256, 210, 0x0400, {208}};
    default: return {0, 0, 0, {}};
  }
}

// One of those encodings, or kF32.
inline Matrix random_matrix(int64_t n, int64_t k, Encoding encoding, std::mt19937& random) {
  const bool integers = encoding == Encoding::kInt4 || encoding == Encoding::kInt8;
  const PackOptions options{.zero = !integers ? 0 : encoding == Encoding::kInt4 ? 8 : 128};
  auto matrix = std::make_shared<PackedMatrix>(encoding, n, k, options);
  if (encoding == Encoding::kF32) {
    std::normal_distribution<float> normal(0.0f, 0.2f);
    std::vector<float> values(static_cast<std::size_t>(n * k));
    for (float& value : values) value = normal(random);
    matrix->set_float_rows(0, n, values.data());
    return matrix;
  }
  const RandomBlocks form = random_blocks(encoding);
  std::vector<uint8_t> row(static_cast<std::size_t>(k / form.values * form.bytes));
  for (int64_t i = 0; i < n; ++i) {
    for (uint8_t& byte : row) byte = static_cast<uint8_t>(random());
    for (std::size_t block = 0; block < row.size(); block += static_cast<std::size_t>(form.bytes)) {
      for (const std::size_t at : form.scales) std::memcpy(&row[block + at], &form.scale, sizeof(form.scale));
    }
    matrix->set_block_rows(i, 1, row.data());
  }
  return matrix;
}

struct LlamaShape {
  int64_t hidden, heads, kv_heads, head_dim, feed_forward, vocabulary;
  int32_t layers;
};

// `encoding`: of the layers; `table`: of the embeddings, which are the head too.
inline std::shared_ptr<const Program> random_llama(const LlamaShape& s, Encoding encoding, Encoding table) {
  std::mt19937 random(1);
  Rope rope;
  for (int64_t i = 0; i < s.head_dim / 2; ++i) rope.inverse_frequency.push_back(std::pow(0.1, static_cast<double>(i)));
  auto program = std::make_shared<Program>(std::vector<Rope>{rope});
  const auto matrix = [&](int64_t n, int64_t k) {
    // Integer weights take inputs by groups of 32 only.
    return random_matrix(n, k, k % kGroup == 0 ? encoding : Encoding::kF32, random);
  };
  const Norm norm = ones(s.hidden);
  const Matrix embeddings = random_matrix(s.vocabulary, s.hidden, table, random);
  const int64_t q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim;
  const float scale = 1 / std::sqrt(static_cast<float>(s.head_dim));
  ValueId x = embed(*program, embeddings);
  for (int32_t layer = 0; layer < s.layers; ++layer) {
    const auto qkv =
        linears(*program, "qkv", x, norm, {matrix(q, s.hidden), matrix(kv, s.hidden), matrix(kv, s.hidden)});
    const ValueId a = attention(*program, qkv, {layer, s.heads, s.kv_heads, s.head_dim, scale});
    x = linears(*program, "out", a, {}, {matrix(s.hidden, q)}, x)[0];
    const ValueId m = glu(*program, x, norm, matrix(s.feed_forward, s.hidden), matrix(s.feed_forward, s.hidden));
    x = linears(*program, "down", m, {}, {matrix(s.hidden, s.feed_forward)}, x)[0];
  }
  linears(*program, "head", x, norm, {embeddings});
  return program;
}

}  // namespace cpuinfer
