// A small Llama of random weights that reads a prompt and decodes: what tests/check_counts.py counts.
//
//     counted_steps ISA ENCODING PROMPT STEPS
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>

#include "kernels/dispatch.h"
#include "program_cases.h"
#include "runtime/session.h"

using namespace cpuinfer;

namespace {

constexpr int64_t kHidden = 512, kHeads = 8, kKvHeads = 2, kHeadDim = 64, kWide = 1536, kVocabulary = 2048;
constexpr int32_t kLayers = 3;
constexpr int64_t kBatch = 64;

// Bytes of a block of `values`, whose fp16 scales, at `scales`, must be small numbers for the logits to be finite.
struct Blocks {
  int64_t values, bytes;
  std::vector<std::size_t> scales;
};

Blocks blocks_of(Encoding encoding) {
  switch (encoding) {
    case Encoding::kInt4: return {32, 18, {0}};
    case Encoding::kInt8: return {32, 34, {0}};
    case Encoding::kQ4K: return {256, 144, {0, 2}};
    case Encoding::kQ6K: return {256, 210, {208}};
    default: std::fprintf(stderr, "encoding: expected int4, int8, q4_k or q6_k\n"); std::exit(2);
  }
}

Matrix random_matrix(int64_t n, int64_t k, Encoding encoding, std::mt19937& random) {
  const bool integers = encoding == Encoding::kInt4 || encoding == Encoding::kInt8;
  const PackOptions options{.zero = !integers ? 0 : encoding == Encoding::kInt4 ? 8 : 128};
  auto matrix = std::make_shared<PackedMatrix>(encoding, n, k, options);
  const Blocks form = blocks_of(encoding);
  std::vector<uint8_t> row(static_cast<std::size_t>(k / form.values * form.bytes));
  for (int64_t i = 0; i < n; ++i) {
    for (uint8_t& byte : row) byte = static_cast<uint8_t>(random());
    constexpr uint16_t kSmall = 0x0400;  // 2^-14
    for (std::size_t block = 0; block < row.size(); block += static_cast<std::size_t>(form.bytes)) {
      for (const std::size_t scale : form.scales) std::memcpy(&row[block + scale], &kSmall, sizeof(kSmall));
    }
    matrix->set_block_rows(i, 1, row.data());
  }
  return matrix;
}

std::shared_ptr<const Program> make_program(Encoding encoding) {
  std::mt19937 random(1);
  auto program = std::make_shared<Program>(std::vector<Rope>{{std::vector<double>(kHeadDim / 2, 0.1), true}});
  const auto matrix = [&](int64_t n, int64_t k) { return random_matrix(n, k, encoding, random); };
  const Matrix table = random_matrix(kVocabulary, kHidden, Encoding::kInt8, random);
  ValueId x = embed(*program, table);
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    const auto qkv = linears(*program, "qkv", x, ones(kHidden),
                             {matrix(kHeads * kHeadDim, kHidden), matrix(kKvHeads * kHeadDim, kHidden),
                              matrix(kKvHeads * kHeadDim, kHidden)});
    const ValueId a = attention(*program, qkv, {layer, kHeads, kKvHeads, kHeadDim, 1 / std::sqrt(float{kHeadDim})});
    x = linears(*program, "out", a, {}, {matrix(kHidden, kHeads * kHeadDim)}, x)[0];
    const ValueId m = glu(*program, x, ones(kHidden), matrix(kWide, kHidden), matrix(kWide, kHidden));
    x = linears(*program, "down", m, {}, {matrix(kHidden, kWide)}, x)[0];
  }
  linears(*program, "head", x, ones(kHidden), {table});
  return program;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 5) {
    std::fprintf(stderr, "usage: counted_steps ISA ENCODING PROMPT STEPS\n");
    return 2;
  }
  const std::optional<Encoding> encoding = encoding_named(arguments[2]);
  const int64_t prompt = std::atol(arguments[3]), steps = std::atol(arguments[4]);
  const SessionOptions options{.limits = {.rows = kBatch, .context = 2048}, .cache_pages = 64};
  Session session(make_program(encoding.value_or(Encoding::kF32)), select_kernels(arguments[1]), options);
  SamplerOptions greedy;
  greedy.temperature = 0;
  const int64_t id = session.open(std::make_shared<Sampler>(greedy, kVocabulary));
  for (int64_t left = prompt; left > 0; left -= kBatch) {
    std::vector<int32_t> tokens(static_cast<std::size_t>(std::min(left, kBatch)));
    for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(37 * i % kVocabulary);
    session.step({{id, tokens, Want::kNothing, {}}}, nullptr);
  }
  int32_t token = 1;
  for (int64_t i = 0; i < steps; ++i) {
    const FeedResult result = session.step({{id, {token}, Want::kSample, {}}}, nullptr)[0];
    if (result.error) {
      std::fprintf(stderr, "%s\n", result.error->what());
      return 1;
    }
    token = result.sampled.token;
  }
  std::printf("%lld bytes of weights\n", static_cast<long long>(session.plan().weight_bytes()));
  return 0;
}
