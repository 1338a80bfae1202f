// The scale and offset of a group of weights with the least weighted squared error, among a finite number of
// candidates.
#pragma once

#include <algorithm>
#include <limits>
#include <span>

#include "quantize/lanes.h"
#include "quantize/levels.h"
#include "quantize/scale_search.h"

namespace cpuinfer {

// Of the codes c nearest to (x - offset) / scale.
struct AffineTally {
  float error;           // sum of weight (x - offset - scale c)^2
  float codes, squares;  // sums of weight c and weight c^2
  float products;        // sum of weight x c
};

// What does not depend on the codes.
struct GroupSums {
  float weights;   // sum of weight
  float weighted;  // sum of weight x
};

inline AffineTally tally(const IntegerLevels& levels, const Group& group, float scale, float offset) {
  const F4 inverse = all4(reciprocal(scale)), factor = all4(scale), shift = all4(offset);
  F4 error{}, codes{}, squares{}, products{};
  for (int i = 0; i < group.count; i += kWide) {
    const F4 x = load4(group.x + i), weight = load4(group.weight + i), shifted = x - shift;
    const F4 code = levels.nearest(shifted * inverse), off = shifted - factor * code, weighted = weight * code;
    error += weight * off * off;
    codes += weighted;
    squares += weighted * code;
    products += weighted * x;
  }
  return {sum4(error), sum4(codes), sum4(squares), sum4(products)};
}

inline GroupSums sums_of(const Group& group) {
  F4 weights{}, weighted{};
  for (int i = 0; i < group.count; i += kWide) {
    const F4 weight = load4(group.weight + i);
    weights += weight;
    weighted += weight * load4(group.x + i);
  }
  return {sum4(weights), sum4(weighted)};
}

struct Line {
  float scale, offset;
};

// The scale and offset of least squares for the codes of a tally; with `lowered` the offset is at most 0.
inline Line least_squares(const AffineTally& found, const GroupSums& sums, Line other, bool lowered) {
  const float determinant = sums.weights * found.squares - found.codes * found.codes;
  if (!(determinant > 1e-6f * sums.weights * found.squares)) return other;
  const Line line{(sums.weights * found.products - sums.weighted * found.codes) / determinant,
                  (found.squares * sums.weighted - found.codes * found.products) / determinant};
  if (lowered && line.offset > 0) return {found.products / found.squares, 0};
  return line;
}

struct FoundLine {
  Line line;
  AffineTally tally;
};

// Parts of a group's extremes, in pairs, that the first and last code stand for when a few numbers are clipped.
constexpr float kParts[] = {1.0f, 0.85f, 0.7f};
constexpr float kPartsOfMany[] = {1.0f, 0.93f, 0.86f, 0.78f, 0.7f, 0.6f};
constexpr float kLeastSteps = -0.9f, kMostSteps = 1.9f, kBetweenSteps = 0.1f;

// Candidates: `plain`; those at which the extremes are the first code and up to two codes beyond the last; those at
// which parts of them are; and of each, twice, the line of least squares for its codes.  `storable` rounds a line to
// what can be kept; with `lowered` the offset is at most 0.
template <typename Storable>
FoundLine find_line(const IntegerLevels& levels, const Group& group, Line plain, bool lowered,
                    const Storable& storable) {
  FoundLine best{storable(plain), {std::numeric_limits<float>::infinity(), 0, 0, 0}};
  const GroupSums sums = sums_of(group);
  const auto consider = [&](Line wanted) {
    Line line = storable(wanted);
    for (int round = 0; round < 3; ++round) {
      const AffineTally found = tally(levels, group, line.scale, line.offset);
      if (found.error < best.tally.error) best = {line, found};
      line = storable(least_squares(found, sums, line, lowered));
    }
  };
  consider(plain);
  const auto [least, most] = std::minmax_element(group.x, group.x + group.count);
  const float low = lowered ? std::min(*least, 0.0f) : *least, range = *most - low;
  if (!(range > 0)) return best;
  for (float beyond = kLeastSteps; beyond < kMostSteps; beyond += kBetweenSteps) {
    consider({range / (levels.last() + beyond), low});
  }
  const std::span<const float> parts =
      group.count >= kMany ? std::span<const float>(kPartsOfMany) : std::span<const float>(kParts);
  for (const float bottom : parts) {
    for (const float top : parts) consider({(*most * top - low * bottom) / levels.last(), low * bottom});
  }
  return best;
}

}  // namespace cpuinfer
