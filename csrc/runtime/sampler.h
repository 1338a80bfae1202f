// Chooses the next token of one request from a row of logits: bias, then the stages in the caller's order, then a draw.
#pragma once

#include <array>
#include <cstdint>
#include <iterator>
#include <span>
#include <utility>
#include <vector>

namespace cpuinfer {

enum class Stage : uint8_t { kPenalties, kTopK, kTopP, kMinP, kTemperature };

inline constexpr Stage kDefaultOrder[] = {Stage::kPenalties, Stage::kTopK, Stage::kTopP, Stage::kMinP,
                                          Stage::kTemperature};

// The ranges are checked by the constructor; python/cpuinfer/sampling.py says what each field means.
struct SamplerOptions {
  double temperature = 0.8;  // 0: greedy, whatever the order; the truncating stages then have nothing to say
  int32_t top_k = 40;        // 0: all
  double top_p = 0.95;
  double min_p = 0.05;
  double repetition_penalty = 1;
  double presence_penalty = 0;
  double frequency_penalty = 0;
  std::vector<std::pair<int32_t, float>> logit_bias;
  uint64_t seed = 0;
  std::vector<Stage> order{std::begin(kDefaultOrder), std::end(kDefaultOrder)};
  int32_t logprobs = -1;  // -1: none; k >= 0: of the token chosen and of the k likeliest
};

struct Sampled {
  int32_t token;
  float logprob;  // of the raw logits; NaN unless asked for
  std::vector<std::pair<int32_t, float>> top;
};

// Philox4x64-10 (Salmon et al., SC 2011): the four random words that belong to a key and a counter.
std::array<uint64_t, 4> philox(std::array<uint64_t, 2> key, std::array<uint64_t, 4> counter) noexcept;

// The state of one request.  Nothing is allocated after construction, but for the alternatives when asked for.
class Sampler {
 public:
  Sampler(SamplerOptions options, int32_t vocabulary);  // throws Error(kInvalid)

  // Tokens of the prompt, for the repetition penalty; may be called for each piece.  Throws Error(kInvalid).
  void see_prompt(std::span<const int32_t> tokens);

  // Chooses a token and records it.  Throws Error(kNumerical) on NaN, +infinity, or when no token is possible; the
  // state is then as it was.
  Sampled sample(std::span<const float> logits);

 private:
  struct Candidate {
    double value;  // the logit, in double: no bias, penalty or temperature in range overflows it
    int32_t token;
  };
  // Total orders, so that no result depends on how a heap arranges equals: higher first, then the lower token.
  struct RanksBefore {
    bool operator()(const Candidate& a, const Candidate& b) const noexcept {
      return a.value > b.value || (a.value == b.value && a.token < b.token);
    }
  };
  struct RanksAfter {
    bool operator()(const Candidate& a, const Candidate& b) const noexcept { return RanksBefore()(b, a); }
  };

  std::span<const float> biased(std::span<const float> logits);
  int32_t choose(std::span<const float> logits);
  void fill(std::span<const float> logits);
  void run(Stage stage) noexcept;
  void penalties() noexcept;
  void top_k() noexcept;
  void top_p() noexcept;
  void min_p() noexcept;
  void temperature() noexcept;
  Candidate best() const noexcept;
  std::span<Candidate> likeliest(std::size_t count) noexcept;
  void keep_through(const Candidate& last) noexcept;
  int32_t draw() noexcept;
  void report(std::span<const float> logits, Sampled& sampled);

  SamplerOptions options_;
  int32_t vocabulary_;
  bool greedy_;
  bool penalised_;                  // a penalty is set: seen_ and generated_ are kept
  uint64_t index_ = 0;              // of the next token within the answer
  std::vector<uint8_t> seen_;       // [vocabulary] in the prompt or the answer
  std::vector<int32_t> generated_;  // [vocabulary] times in the answer
  std::vector<float> biased_;       // [vocabulary] if there is a bias
  std::vector<Candidate> storage_;  // [vocabulary]
  std::span<Candidate> kept_;       // the candidates left, a prefix of storage_, by ascending token
  std::vector<Candidate> scratch_;  // [vocabulary] heaps
};

}  // namespace cpuinfer
