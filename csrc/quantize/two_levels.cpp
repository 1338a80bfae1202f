// Scales in two levels, plainly and by a search.
#include "quantize/two_levels.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/half.h"
#include "quantize/lanes.h"

namespace cpuinfer {

namespace {

constexpr int kCandidates = 24;  // ends from 1 step within the last number to 2 steps beyond it

float largest_of(std::span<const float> wanted) {
  return *std::ranges::max_element(wanted, {}, [](float x) { return std::abs(x); });
}

// Of several factors the one of least error.
class Search {
 public:
  Search(std::span<const float> wanted, std::span<const float> weight, NumberRange range)
      : wanted_(wanted), weight_(weight), range_(range) {}

  // A factor, and the one of least squares for its numbers.
  void consider(float factor) {
    for (int round = 0; round < 2; ++round) {
      const TwoLevels found = with_factor(wanted_, storable(factor), range_);
      float error = 0, products = 0, squares = 0;
      for (std::size_t i = 0; i < wanted_.size(); ++i) {
        const float number = static_cast<float>(found.number[i]), off = wanted_[i] - found.factor * number;
        error += weight_[i] * off * off;
        products += weight_[i] * wanted_[i] * number;
        squares += weight_[i] * number * number;
      }
      if (error < least_) {
        least_ = error;
        best_ = found;
      }
      if (!(squares > 0)) return;
      factor = products / squares;
    }
  }

  const TwoLevels& best() const { return best_; }

 private:
  std::span<const float> wanted_, weight_;
  NumberRange range_;
  float least_ = std::numeric_limits<float>::infinity();
  TwoLevels best_;
};

}  // namespace

int NumberRange::nearest(float x) const {
  const float least = static_cast<float>(low), most = static_cast<float>(high);
  const float clamped = x > least ? (x < most ? x : most) : least;  // NaN, too, becomes a number
  return static_cast<int>((clamped + 0x1.8p23f) - 0x1.8p23f);
}

float storable(float x) {
  const float rounded = half_to_float(float_to_half(x));
  return std::isfinite(rounded) ? rounded : 0;
}

TwoLevels with_factor(std::span<const float> wanted, float factor, NumberRange range) {
  TwoLevels found{factor, {}};
  const float inverse = reciprocal(factor);
  for (std::size_t i = 0; i < wanted.size(); ++i) found.number[i] = range.nearest(wanted[i] * inverse);
  return found;
}

TwoLevels plain_levels(std::span<const float> wanted, NumberRange range) {
  const int end = -range.low > range.high ? range.low : range.high;
  return with_factor(wanted, half_to_float(float_to_half(largest_of(wanted) / static_cast<float>(end))), range);
}

TwoLevels find_levels(std::span<const float> wanted, std::span<const float> weight, NumberRange range) {
  Search search(wanted, weight, range);
  search.consider(plain_levels(wanted, range).factor);
  const float largest = largest_of(wanted);
  for (const int end : {range.low, range.high}) {
    if (end == 0 || largest == 0) continue;
    const float outwards = end < 0 ? -1.0f : 1.0f;
    for (int i = 0; i < kCandidates; ++i) {
      const float beyond = -1 + 3 * static_cast<float>(i) / kCandidates;
      search.consider(largest / (static_cast<float>(end) + outwards * beyond));
    }
  }
  return search.best();
}

}  // namespace cpuinfer
