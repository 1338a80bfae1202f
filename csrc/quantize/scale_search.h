// The scale of a group of weights with the least weighted squared error, among a finite number of candidates.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "quantize/lanes.h"

namespace cpuinfer {

// Neighbours that share a scale.
struct Group {
  const float* x;
  const float* weight;  // of the square of each error; never negative, some positive
  int count;            // a multiple of 4
};

// Of the levels l nearest to x / scale.
struct Tally {
  float error;     // sum of weight (x - scale l)^2
  float products;  // sum of weight x l
  float squares;   // sum of weight l^2

  // The scale that is best for these levels, or the other one where all are 0.
  float best_scale(float other) const { return squares > 0 ? products / squares : other; }
};

template <typename Levels>
Tally tally(const Levels& levels, const Group& group, float scale) {
  const F4 inverse = all4(reciprocal(scale)), factor = all4(scale);
  F4 error{}, products{}, squares{};
  for (int i = 0; i < group.count; i += kWide) {
    const F4 x = load4(group.x + i), weight = load4(group.weight + i), level = levels.nearest(x * inverse);
    const F4 off = x - factor * level, weighted = weight * level;
    error += weight * off * off;
    products += weighted * x;
    squares += weighted * level;
  }
  return {sum4(error), sum4(products), sum4(squares)};
}

// The number of largest magnitude, the first of several.
inline float signed_largest(const float* x, int count) {
  float low = x[0], high = x[0];
  for (int i = 1; i < count; ++i) {
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
  }
  if (-low != high) return -low > high ? low : high;
  for (int i = 0; i < count; ++i) {
    if (std::abs(x[i]) == high) return x[i];
  }
  return high;
}

// The number whose square counts most.
inline float weightiest(const Group& group) {
  float found = group.x[0], most = -1;
  for (int i = 0; i < group.count; ++i) {
    const float here = group.weight[i] * group.x[i] * group.x[i];
    if (here > most) {
      most = here;
      found = group.x[i];
    }
  }
  return found;
}

struct FoundScale {
  float scale;
  float error;
  float squares;  // how the error grows with the square of a change of the scale
};

// Ends beyond the outermost level, in steps between levels, that the number of largest magnitude is put at.
constexpr float kNearestEnd = -0.8f, kFarthestEnd = 3.0f, kBetweenEnds = 0.2f;
// Of many numbers the largest is further out, and clipping it costs less of the sum.
constexpr int kMany = 64;
constexpr float kFarthestOfMany = 8.0f;

// Candidates: `plain`; those at which the largest number, then the weightiest, lies at the first and at the last level
// or at an end beyond them; and of each the scale of least squares for its levels.  `storable` rounds a scale to what
// can be kept.
template <typename Levels, typename Storable>
FoundScale find_scale(const Levels& levels, const Group& group, float plain, const Storable& storable) {
  FoundScale best{storable(plain), std::numeric_limits<float>::infinity(), 0};
  const auto consider = [&](float wanted) {
    float scale = storable(wanted);
    for (int round = 0; round < 2; ++round) {
      const Tally found = tally(levels, group, scale);
      if (found.error < best.error) best = {scale, found.error, found.squares};
      scale = storable(found.best_scale(scale));
    }
  };
  consider(plain);
  const float farthest = group.count >= kMany ? kFarthestOfMany : kFarthestEnd;
  const float largest = signed_largest(group.x, group.count), heavy = weightiest(group);
  for (const float number : {largest, heavy}) {
    if (number == 0) continue;
    for (const float end : {levels.first(), levels.last()}) {
      if (end == 0) continue;
      for (float beyond = kNearestEnd; beyond < farthest; beyond += kBetweenEnds) {
        consider(number / (end * (1 + beyond / levels.reach())));
      }
    }
    if (heavy == largest) break;
  }
  consider(best.scale);
  return best;
}

}  // namespace cpuinfer
