// Scales in two levels: a factor that fp16 holds times a small integer for each group.
#pragma once

#include <cstdint>
#include <span>

namespace cpuinfer {

constexpr int kMostGroups = 16;  // of a block

// Integers from low to high.
struct NumberRange {
  int low, high;
  int nearest(float x) const;
};

struct TwoLevels {
  float factor = 0;  // fp16 holds it
  int number[kMostGroups] = {};
};

// fp16's nearest, as float; 0 for what is too large for it.
float storable(float x);

// The numbers nearest to wanted / factor.
TwoLevels with_factor(std::span<const float> wanted, float factor, NumberRange range);

// As it is done plainly: the one of largest magnitude becomes the number of largest magnitude.  The factor is infinite
// where it is too large for fp16.
TwoLevels plain_levels(std::span<const float> wanted, NumberRange range);

// The factor and numbers of least sum of weight (wanted - factor number)^2, among candidates as for groups of weights.
TwoLevels find_levels(std::span<const float> wanted, std::span<const float> weight, NumberRange range);

}  // namespace cpuinfer
