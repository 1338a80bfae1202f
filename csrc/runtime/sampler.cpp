// The sampler chain.  Every truncating stage finds the last candidate to keep and drops those that rank after it, so
// candidates stay in token order and the draw does not depend on how a partial sort arranges them.
#include "runtime/sampler.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <sstream>
#include <string>

#include "core/error.h"

namespace cpuinfer {
namespace {

template <typename T>
void require(bool good, const char* field, const T& value, const char* expected) {
  if (good) return;
  std::ostringstream message;
  message << field << " is " << value << ", expected " << expected;
  throw Error(Fault::kInvalid, message.str());
}

bool within(double value, double low, double high) { return value >= low && value <= high; }  // false for NaN

void check(const SamplerOptions& o, int32_t vocabulary) {
  require(vocabulary > 0, "vocabulary", vocabulary, "at least 1");
  require(within(o.temperature, 0, 100), "temperature", o.temperature, "0 to 100");
  require(o.top_k >= 0, "top_k", o.top_k, "at least 0");
  require(within(o.top_p, 0, 1) && o.top_p > 0, "top_p", o.top_p, "more than 0, at most 1");
  require(within(o.min_p, 0, 1), "min_p", o.min_p, "0 to 1");
  // Bounded so that a float logit stays finite in double, whatever the stages and their order.
  require(within(o.repetition_penalty, 0.001, 1000), "repetition_penalty", o.repetition_penalty, "0.001 to 1000");
  require(within(o.presence_penalty, -100, 100), "presence_penalty", o.presence_penalty, "-100 to 100");
  require(within(o.frequency_penalty, -100, 100), "frequency_penalty", o.frequency_penalty, "-100 to 100");
  require(within(o.logprobs, -1, 1000), "logprobs", o.logprobs, "-1 (none) or 0 to 1000");
  for (const auto& [token, bias] : o.logit_bias) {
    if (token < 0 || token >= vocabulary) {
      const std::string expected = "a token from 0 to " + std::to_string(vocabulary - 1);
      require(false, "logit_bias", token, expected.c_str());
    }
    require(bias < std::numeric_limits<float>::infinity(), "logit_bias", bias, "finite or -infinity");
  }
  uint32_t met = 0;
  for (const Stage stage : o.order) {
    const auto number = static_cast<uint32_t>(stage);
    require(number <= static_cast<uint32_t>(Stage::kTemperature), "order", number, "known stages");
    require((met >> number & 1) == 0, "order", number, "each stage at most once");
    met |= 1u << number;
  }
}

constexpr float kInf = std::numeric_limits<float>::infinity();

// For logits of which one is NaN or +inf, or all are -inf.
[[noreturn]] void refuse(std::span<const float> logits) {
  const auto bad = std::find_if(logits.begin(), logits.end(), [](float x) { return !(x < kInf); });
  if (bad == logits.end()) throw Error(Fault::kNumerical, "no token is possible: every logit is -inf");
  throw Error(Fault::kNumerical, "the logit of token " + std::to_string(bad - logits.begin()) + " is " +
                                     std::to_string(*bad) + ", expected a finite number or -inf");
}

// The first of the largest: what is left of a greedy chain without penalties, in one sweep.
int32_t largest(std::span<const float> logits) {
  constexpr std::size_t kLanes = 16;  // maxima side by side, for the compiler's vectors
  std::array<float, kLanes> most;
  most.fill(-kInf);
  std::array<int32_t, kLanes> faults{};
  std::size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      const float x = logits[i + lane];
      faults[lane] |= x < kInf ? 0 : 1;
      most[lane] = x > most[lane] ? x : most[lane];
    }
  }
  for (; i < logits.size(); ++i) {
    faults[0] |= logits[i] < kInf ? 0 : 1;
    most[0] = std::max(most[0], logits[i]);
  }
  const float best = *std::max_element(most.begin(), most.end());
  if (best == -kInf || std::ranges::any_of(faults, [](int32_t fault) { return fault != 0; })) refuse(logits);
  return static_cast<int32_t>(std::find(logits.begin(), logits.end(), best) - logits.begin());
}

struct Wide {
  uint64_t high;
  uint64_t low;
};

Wide multiply(uint64_t a, uint64_t b) noexcept {
  const uint64_t a0 = a & 0xffffffff, a1 = a >> 32, b0 = b & 0xffffffff, b1 = b >> 32;
  const uint64_t middle = a1 * b0 + (a0 * b0 >> 32);  // at most (2^32 - 1)^2 + 2^32 - 1: fits
  const uint64_t cross = a0 * b1 + (middle & 0xffffffff);
  return {a1 * b1 + (middle >> 32) + (cross >> 32), a * b};
}

}  // namespace

std::array<uint64_t, 4> philox(std::array<uint64_t, 2> key, std::array<uint64_t, 4> c) noexcept {
  constexpr int kRounds = 10;
  for (int round = 0; round < kRounds; ++round) {
    const Wide p0 = multiply(0xD2E7470EE14C6C93, c[0]);
    const Wide p1 = multiply(0xCA5A826395121157, c[2]);
    c = {p1.high ^ c[1] ^ key[0], p1.low, p0.high ^ c[3] ^ key[1], p0.low};
    key[0] += 0x9E3779B97F4A7C15;  // the golden ratio
    key[1] += 0xBB67AE8584CAA73B;  // sqrt(3) - 1
  }
  return c;
}

Sampler::Sampler(SamplerOptions options, int32_t vocabulary) : options_(std::move(options)), vocabulary_(vocabulary) {
  check(options_, vocabulary);
  greedy_ = options_.temperature < FLT_MIN;  // a subnormal temperature leaves nothing but the maximum either
  penalised_ = options_.repetition_penalty != 1 || options_.presence_penalty != 0 || options_.frequency_penalty != 0;
  const auto size = static_cast<std::size_t>(vocabulary);
  if (penalised_) {
    seen_.resize(size);
    generated_.resize(size);
  }
  if (!options_.logit_bias.empty()) biased_.resize(size);
  storage_.resize(size);
  scratch_.resize(size);
}

void Sampler::see_prompt(std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) {
    if (token < 0 || token >= vocabulary_) {
      const std::string expected = "0 to " + std::to_string(vocabulary_ - 1);
      require(false, "prompt token", token, expected.c_str());
    }
  }
  if (!penalised_) return;
  for (const int32_t token : tokens) seen_[static_cast<std::size_t>(token)] = 1;
}

Sampled Sampler::sample(std::span<const float> logits) {
  const int32_t chosen = greedy_ && !penalised_ ? largest(biased(logits)) : choose(biased(logits));
  Sampled sampled{chosen, std::numeric_limits<float>::quiet_NaN(), {}};
  if (options_.logprobs >= 0) report(logits, sampled);
  ++index_;
  if (penalised_) {
    const auto token = static_cast<std::size_t>(sampled.token);
    seen_[token] = 1;
    ++generated_[token];
  }
  return sampled;
}

std::span<const float> Sampler::biased(std::span<const float> logits) {
  require(logits.size() == storage_.size(), "length of the logits", logits.size(), "the size of the vocabulary");
  if (options_.logit_bias.empty()) return logits;
  std::copy(logits.begin(), logits.end(), biased_.begin());
  for (const auto& [token, bias] : options_.logit_bias) biased_[static_cast<std::size_t>(token)] += bias;
  return biased_;
}

int32_t Sampler::choose(std::span<const float> logits) {
  fill(logits);
  for (const Stage stage : options_.order) run(stage);
  return greedy_ ? best().token : draw();
}

// Makes a candidate of every token that is not forbidden by a logit of -inf.
void Sampler::fill(std::span<const float> logits) {
  Candidate* const out = storage_.data();
  std::size_t count = 0;
  bool sound = true;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const float logit = logits[i];
    sound &= logit < kInf;
    out[count] = {logit, static_cast<int32_t>(i)};
    count += logit > -kInf;
  }
  if (!sound || count == 0) refuse(logits);
  kept_ = std::span(storage_).first(count);
}

void Sampler::run(Stage stage) noexcept {
  if (greedy_ && stage != Stage::kPenalties) return;
  switch (stage) {
    case Stage::kPenalties: return penalties();
    case Stage::kTopK: return top_k();
    case Stage::kTopP: return top_p();
    case Stage::kMinP: return min_p();
    case Stage::kTemperature: return temperature();
  }
}

void Sampler::penalties() noexcept {
  if (!penalised_) return;
  const double repetition = options_.repetition_penalty;
  for (Candidate& candidate : kept_) {
    const auto token = static_cast<std::size_t>(candidate.token);
    if (seen_[token] == 0) continue;
    candidate.value = candidate.value > 0 ? candidate.value / repetition : candidate.value * repetition;
    if (generated_[token] == 0) continue;
    candidate.value -= options_.presence_penalty + options_.frequency_penalty * generated_[token];
  }
}

void Sampler::top_k() noexcept {
  const auto k = static_cast<std::size_t>(options_.top_k);
  if (k == 0 || k >= kept_.size()) return;
  keep_through(likeliest(k).front());
}

// Takes candidates from a heap, likeliest first, until their share of what is left reaches top_p.  All n candidates
// under (1 - top_p) / n together have less than 1 - top_p, so they cannot be needed; half of it leaves room for
// rounding.
void Sampler::top_p() noexcept {
  if (options_.top_p >= 1) return;
  const double highest = best().value;
  double total = 0;
  for (const Candidate& candidate : kept_) total += std::exp(candidate.value - highest);
  const double least = highest + std::log((1 - options_.top_p) / 2 * total / static_cast<double>(kept_.size()));
  const auto end = std::copy_if(kept_.begin(), kept_.end(), scratch_.begin(),
                                [least](const Candidate& candidate) { return candidate.value >= least; });
  std::span<Candidate> heap(scratch_.begin(), end);
  std::make_heap(heap.begin(), heap.end(), RanksAfter());
  const double enough = options_.top_p * total;
  double sum = std::exp(heap.front().value - highest);
  while (sum < enough && heap.size() > 1) {
    std::pop_heap(heap.begin(), heap.end(), RanksAfter());
    heap = heap.first(heap.size() - 1);
    sum += std::exp(heap.front().value - highest);
  }
  keep_through(heap.front());
}

// p >= min_p * p_max, said of logits: neither a softmax nor a sort is needed (Nguyen et al., arXiv 2407.01082).
void Sampler::min_p() noexcept {
  if (options_.min_p <= 0) return;
  keep_through({best().value + std::log(options_.min_p), vocabulary_});
}

void Sampler::temperature() noexcept {
  for (Candidate& candidate : kept_) candidate.value /= options_.temperature;
}

Sampler::Candidate Sampler::best() const noexcept {
  Candidate best = kept_.front();
  for (const Candidate& candidate : kept_) {
    if (candidate.value > best.value) best = candidate;
  }
  return best;
}

// The `count` candidates that rank first (1 <= count <= kept), as a heap in scratch_ with the last of them in front.
std::span<Sampler::Candidate> Sampler::likeliest(std::size_t count) noexcept {
  const std::span<Candidate> heap(scratch_.data(), count);
  std::copy_n(kept_.begin(), count, heap.begin());
  std::make_heap(heap.begin(), heap.end(), RanksBefore());
  for (const Candidate& candidate : kept_.subspan(count)) {
    if (candidate.value <= heap.front().value) continue;  // an equal comes later, so it has the higher token
    std::pop_heap(heap.begin(), heap.end(), RanksBefore());
    heap.back() = candidate;
    std::push_heap(heap.begin(), heap.end(), RanksBefore());
  }
  return heap;
}

void Sampler::keep_through(const Candidate& last) noexcept {
  const auto end =
      std::remove_if(kept_.begin(), kept_.end(), [last](const Candidate& c) { return RanksBefore()(last, c); });
  kept_ = kept_.first(static_cast<std::size_t>(end - kept_.begin()));
}

// Inverse of the cumulative distribution, in token order, at a uniform number in [0, 1) of 53 bits.
int32_t Sampler::draw() noexcept {
  const double highest = best().value;
  double total = 0;
  for (Candidate& candidate : kept_) candidate.value = total += std::exp(candidate.value - highest);
  const double uniform = static_cast<double>(philox({options_.seed, 0}, {index_, 0, 0, 0})[0] >> 11) * 0x1p-53;
  // uniform <= 1 - 2^-53, so the product is rounded to less than the total: one candidate exceeds it.
  const auto chosen = std::upper_bound(kept_.begin(), kept_.end(), uniform * total,
                                       [](double target, const Candidate& c) { return target < c.value; });
  return chosen->token;
}

// Log-softmax of the raw logits: what the model said, whatever bias, penalties and stages made of it.
void Sampler::report(std::span<const float> logits, Sampled& sampled) {
  fill(logits);
  const double highest = best().value;
  double total = 0;
  for (const Candidate& candidate : kept_) total += std::exp(candidate.value - highest);
  const double normaliser = highest + std::log(total);
  sampled.logprob = static_cast<float>(logits[static_cast<std::size_t>(sampled.token)] - normaliser);
  const auto count = std::min(static_cast<std::size_t>(options_.logprobs), kept_.size());
  if (count == 0) return;
  const std::span<Candidate> top = likeliest(count);
  std::sort_heap(top.begin(), top.end(), RanksBefore());
  sampled.top.reserve(count);
  for (const Candidate& c : top) sampled.top.emplace_back(c.token, static_cast<float>(c.value - normaliser));
}

}  // namespace cpuinfer
