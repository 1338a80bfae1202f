// A small Llama of random weights that reads a prompt and decodes: what tests/check_counts.py counts.
//
//     counted_steps ISA ENCODING PROMPT STEPS
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/dispatch.h"
#include "program_cases.h"
#include "runtime/session.h"

using namespace cpuinfer;

namespace {

constexpr LlamaShape kShape{512, 8, 2, 64, 1536, 2048, 3};
constexpr int64_t kBatch = 64;

}  // namespace

int main(int count, char** arguments) {
  if (count != 5) {
    std::fprintf(stderr, "usage: counted_steps ISA ENCODING PROMPT STEPS\n");
    return 2;
  }
  const std::optional<Encoding> encoding = encoding_named(arguments[2]);
  if (!encoding || random_blocks(*encoding).bytes == 0) {
    std::fprintf(stderr, "encoding: expected int4, int8, q4_k or q6_k\n");
    return 2;
  }
  const int64_t prompt = std::atol(arguments[3]), steps = std::atol(arguments[4]);
  const SessionOptions options{.limits = {.rows = kBatch, .context = 2048}, .cache_pages = 64};
  Session session(random_llama(kShape, *encoding, Encoding::kInt8), select_kernels(arguments[1]), options);
  SamplerOptions greedy;
  greedy.temperature = 0;
  const int64_t id = session.open(std::make_shared<Sampler>(greedy, kShape.vocabulary));
  for (int64_t left = prompt; left > 0; left -= kBatch) {
    std::vector<int32_t> tokens(static_cast<std::size_t>(std::min(left, kBatch)));
    for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(37 * i % kShape.vocabulary);
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
  return 0;
}
