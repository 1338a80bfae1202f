// The sampler without Python: known answers, refusals, and memory under the sanitizers.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "check.h"
#include "core/error.h"
#include "runtime/sampler.h"

namespace {

using cpuinfer::Error;
using cpuinfer::Fault;
using cpuinfer::Sampler;
using cpuinfer::SamplerOptions;

template <typename Body>
bool fails_with(Fault fault, Body body) {
  try {
    body();
  } catch (const Error& error) {
    return error.fault() == fault;
  }
  return false;
}

std::vector<float> ramp(int size) {
  std::vector<float> logits(static_cast<std::size_t>(size));
  for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>((i * 7919) % 101) / 16.0f;
  return logits;
}

}  // namespace

// The known-answer vectors of Random123, the library of the paper's authors.
TEST("philox gives the published answers") {
  const auto zero = cpuinfer::philox({0, 0}, {0, 0, 0, 0});
  CHECK_EQ(zero[0], 0x16554d9eca36314cull);
  CHECK_EQ(zero[1], 0xdb20fe9d672d0fdcull);
  CHECK_EQ(zero[2], 0xd7e772cee186176bull);
  CHECK_EQ(zero[3], 0x7e68b68aec7ba23bull);
  const uint64_t ones = ~0ull;
  const auto full = cpuinfer::philox({ones, ones}, {ones, ones, ones, ones});
  CHECK_EQ(full[0], 0x87b092c3013fe90bull);
  CHECK_EQ(full[1], 0x438c3c67be8d0224ull);
  CHECK_EQ(full[2], 0x9cc7d7c69cd777b6ull);
  CHECK_EQ(full[3], 0xa09caebf594f0ba0ull);
}

TEST("every stage stays inside its buffers, at sizes next to its limits") {
  for (const int size : {1, 2, 39, 40, 41, 1000}) {
    const std::vector<float> logits = ramp(size);
    SamplerOptions options;
    options.repetition_penalty = 1.1;
    options.frequency_penalty = 0.1;
    options.logit_bias = {{0, 1.0f}, {size - 1, 0.5f}};
    options.logprobs = 40;
    Sampler sampler(options, size);
    sampler.see_prompt(std::vector<int32_t>{0, size - 1});
    for (int i = 0; i < 50; ++i) {
      const cpuinfer::Sampled sampled = sampler.sample(logits);
      CHECK(sampled.token >= 0 && sampled.token < size);
      CHECK(sampled.logprob <= 0);
      CHECK_EQ(sampled.top.size(), static_cast<std::size_t>(std::min(size, 40)));
    }
  }
}

TEST("a truncation that leaves one token chooses it") {
  const std::vector<float> logits = {0.0f, 3.0f, 1.0f};
  for (int which = 0; which < 3; ++which) {
    SamplerOptions options;
    if (which == 0) options.top_k = 1;
    if (which == 1) options.top_p = 1e-9;
    if (which == 2) options.min_p = 1;
    CHECK_EQ(Sampler(options, 3).sample(logits).token, 1);
  }
}

TEST("without penalties the greedy choice is that of the whole chain: the first of the largest") {
  std::mt19937 random(5);
  for (const std::size_t size : {1, 2, 15, 16, 17, 33, 1000}) {
    for (int trial = 0; trial < 50; ++trial) {
      std::vector<float> logits(size);
      for (float& logit : logits) logit = static_cast<float>(random() % 7) - 3.0f;
      for (std::size_t i = 0; i < size; i += 2) logits[(i + random()) % size] = -std::numeric_limits<float>::infinity();
      if (trial == 0) std::fill(logits.begin(), logits.end(), -0.0f);
      const bool none = std::ranges::all_of(logits, [](float x) { return std::isinf(x); });
      SamplerOptions greedy, penalised;
      greedy.temperature = penalised.temperature = 0;
      penalised.presence_penalty = 1;  // of a token that has been seen; none has
      Sampler chosen(greedy, static_cast<int32_t>(size)), expected(penalised, static_cast<int32_t>(size));
      if (none) {
        CHECK(fails_with(Fault::kNumerical, [&] { chosen.sample(logits); }));
      } else {
        CHECK_EQ(chosen.sample(logits).token, expected.sample(logits).token);
      }
      logits[random() % size] = trial % 2 ? std::nanf("") : std::numeric_limits<float>::infinity();
      CHECK(fails_with(Fault::kNumerical, [&] { chosen.sample(logits); }));
    }
  }
}

TEST("no log-probability is computed unless asked for") {
  CHECK(std::isnan(Sampler(SamplerOptions(), 3).sample(ramp(3)).logprob));
}

TEST("wrong rows, tokens and options are refused") {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  Sampler sampler(SamplerOptions(), 2);
  CHECK(fails_with(Fault::kNumerical, [&] { sampler.sample(std::vector<float>{0.0f, std::nanf("")}); }));
  CHECK(fails_with(Fault::kNumerical, [&] { sampler.sample(std::vector<float>{0.0f, kInf}); }));
  CHECK(fails_with(Fault::kNumerical, [&] { sampler.sample(std::vector<float>{-kInf, -kInf}); }));
  CHECK(fails_with(Fault::kInvalid, [&] { sampler.sample(std::vector<float>(3)); }));
  CHECK(fails_with(Fault::kInvalid, [&] { sampler.see_prompt(std::vector<int32_t>{2}); }));
  CHECK(fails_with(Fault::kInvalid, [] { Sampler(SamplerOptions(), 0); }));
  SamplerOptions options;
  options.min_p = 1.5;
  CHECK(fails_with(Fault::kInvalid, [&] { Sampler(options, 2); }));
}

int main() { return check::run_all(); }
