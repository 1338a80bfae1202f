// Scales are fitted group by group, brought into two levels, and then improved together while codes follow.
#include "quantize/block_search.h"

#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>

#include "quantize/affine_search.h"
#include "quantize/placing.h"
#include "quantize/scale_search.h"

namespace cpuinfer {

namespace {

constexpr int kRounds = 4;  // of numbers improved for a factor, and the factor for their codes

using Numbers = std::array<float, kMostGroups>;

float same(float x) { return x; }
Line same_line(Line line) { return line; }
Line storable_line(Line line) { return {storable(line.scale), storable(line.offset)}; }

Group group_of(const BlockType& type, const float* x, const float* weight, int g) {
  return {x + g * type.group, weight + g * type.group, type.group};
}

std::span<const float> first(const Numbers& numbers, int count) {
  return {numbers.data(), static_cast<std::size_t>(count)};
}

// Numbers for given factors, and what they cost.
struct Attempt {
  BlockScales scales;
  float error = std::numeric_limits<float>::infinity();
};

// Scales of two levels without offsets.
template <typename AnyLevels>
class ScaleRounds {
 public:
  ScaleRounds(const BlockType& type, const AnyLevels& levels, const float* x, const float* weight)
      : type_(type), levels_(levels), x_(x), weight_(weight) {}

  BlockScales run(const BlockScales& plain) {
    Numbers wanted{}, squares{};
    for (int g = 0; g < type_.groups(); ++g) {
      const FoundScale found = find_scale(levels_, group(g), plain.scale_of(g), same);
      wanted[static_cast<std::size_t>(g)] = found.scale;
      squares[static_cast<std::size_t>(g)] = found.squares;
    }
    improve(plain.scale);
    improve(find_levels(first(wanted, type_.groups()), first(squares, type_.groups()), type_.scales));
    return best_.scales;
  }

 private:
  Group group(int g) const { return group_of(type_, x_, weight_, g); }

  void improve(TwoLevels scale) {
    for (int round = 0; round < kRounds; ++round) {
      float error = 0, products = 0, squares = 0;
      for (int g = 0; g < type_.groups(); ++g) {
        const Tally found = best_number(g, scale.factor, scale.number[g]);
        const float number = static_cast<float>(scale.number[g]);
        error += found.error;
        products += number * found.products;
        squares += number * number * found.squares;
      }
      if (!(error < best_.error)) return;
      best_ = {{scale, {}}, error};
      if (!(squares > 0)) return;
      scale.factor = storable(products / squares);
    }
  }

  // The number itself or one of its neighbours.
  Tally best_number(int g, float factor, int& number) const {
    const int middle = number;
    Tally best = tally(levels_, group(g), factor * static_cast<float>(middle));
    for (const int other : {middle - 1, middle + 1}) {
      if (other < type_.scales.low || other > type_.scales.high) continue;
      const Tally found = tally(levels_, group(g), factor * static_cast<float>(other));
      if (found.error < best.error) {
        best = found;
        number = other;
      }
    }
    return best;
  }

  const BlockType& type_;
  const AnyLevels& levels_;
  const float* x_;
  const float* weight_;
  Attempt best_;
};

// Scales and offsets of two levels.
class LineRounds {
 public:
  LineRounds(const BlockType& type, const float* x, const float* weight)
      : type_(type), levels_(static_cast<float>(type.first), static_cast<float>(type.last)), x_(x), weight_(weight) {
    for (int g = 0; g < type.groups(); ++g) sums_[static_cast<std::size_t>(g)] = sums_of(group(g));
  }

  BlockScales run(const BlockScales& plain) {
    Numbers scale{}, bend{}, offset{}, weights{};
    for (int g = 0; g < type_.groups(); ++g) {
      const auto i = static_cast<std::size_t>(g);
      const FoundLine found = find_line(levels_, group(g), {plain.scale_of(g), plain.offset_of(g)}, true, same_line);
      const AffineTally& t = found.tally;
      scale[i] = found.line.scale;
      offset[i] = found.line.offset;
      weights[i] = sums_[i].weights;
      // How the error grows with a change of the scale, if the offset follows.
      bend[i] = weights[i] > 0 ? std::max(t.squares - t.codes * t.codes / weights[i], 0.0f) : 0;
    }
    improve(plain);
    const TwoLevels scales = find_levels(first(scale, type_.groups()), first(bend, type_.groups()), type_.scales);
    improve({scales, find_levels(first(offset, type_.groups()), first(weights, type_.groups()), type_.offsets)});
    return best_.scales;
  }

 private:
  Group group(int g) const { return group_of(type_, x_, weight_, g); }

  AffineTally tally_of(int g, const BlockScales& s) const {
    return tally(levels_, group(g), s.scale_of(g), s.offset_of(g));
  }

  void improve(BlockScales s) {
    for (int round = 0; round < kRounds; ++round) {
      // The error is quadratic in the two factors: a, b, c its second derivatives, p and q the first.
      float error = 0, a = 0, b = 0, c = 0, p = 0, q = 0;
      for (int g = 0; g < type_.groups(); ++g) {
        const AffineTally found = best_numbers(g, s);
        const GroupSums& sums = sums_[static_cast<std::size_t>(g)];
        const float scale = static_cast<float>(s.scale.number[g]), offset = static_cast<float>(s.offset.number[g]);
        error += found.error;
        a += scale * scale * found.squares;
        b += scale * offset * found.codes;
        c += offset * offset * sums.weights;
        p += scale * found.products;
        q += offset * sums.weighted;
      }
      if (!(error < best_.error)) return;
      best_ = {s, error};
      const float determinant = a * c - b * b;
      if (determinant > 1e-6f * a * c) {
        s.scale.factor = storable((p * c - b * q) / determinant);
        s.offset.factor = storable((a * q - b * p) / determinant);
      } else if (a > 0) {
        s.scale.factor = storable((p - b * s.offset.factor) / a);
      }
    }
  }

  // Each number itself or a neighbour.
  AffineTally best_numbers(int g, BlockScales& s) const {
    const int scale = s.scale.number[g], offset = s.offset.number[g];
    AffineTally best = tally_of(g, s);
    BlockScales tried = s;
    for (int i = scale - 1; i <= scale + 1; ++i) {
      for (int j = offset - 1; j <= offset + 1; ++j) {
        if (i < type_.scales.low || i > type_.scales.high || j < type_.offsets.low || j > type_.offsets.high) continue;
        tried.scale.number[g] = i;
        tried.offset.number[g] = j;
        const AffineTally found = tally_of(g, tried);
        if (found.error < best.error) {
          best = found;
          s.scale.number[g] = i;
          s.offset.number[g] = j;
        }
      }
    }
    return best;
  }

  const BlockType& type_;
  IntegerLevels levels_;
  const float* x_;
  const float* weight_;
  std::array<GroupSums, kMostGroups> sums_{};
  Attempt best_;
};

BlockScales one_level(const BlockType& type, const Group& group, const BlockScales& plain) {
  BlockScales found = plain;
  if (type.has_offset()) {
    const IntegerLevels levels(static_cast<float>(type.first), static_cast<float>(type.last));
    const Line line = find_line(levels, group, {plain.scale_of(0), plain.offset_of(0)}, false, storable_line).line;
    found.scale.factor = line.scale;
    found.offset.factor = line.offset;
    return found;
  }
  with_levels(type, [&](const auto& levels) {
    found.scale.factor = find_scale(levels, group, plain.scale_of(0), storable).scale;
  });
  return found;
}

}  // namespace

BlockScales find_scales(const BlockType& type, const float* x, const float* weight, const BlockScales& plain) {
  if (!type.has_two_levels()) return one_level(type, group_of(type, x, weight, 0), plain);
  if (type.has_offset()) return LineRounds(type, x, weight).run(plain);
  return with_levels(type, [&](const auto& levels) { return ScaleRounds(type, levels, x, weight).run(plain); });
}

}  // namespace cpuinfer
