// The levels a scaled number may take: integers from a first to a last, or a table; and the one nearest to it.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>

#include "quantize/lanes.h"

namespace cpuinfer {

// Codes 0, 1, ... stand for first, first + 1, ...; at most 2^22 in magnitude.
class IntegerLevels {
 public:
  IntegerLevels(float first, float last) : first_(first), last_(last) {}

  float first() const { return first_; }
  float last() const { return last_; }
  // How many steps it is from 0 to the level furthest from it.
  float reach() const { return std::max(std::abs(first_), std::abs(last_)); }
  F4 nearest(F4 v) const { return round4(min4(max4(v, all4(first_)), all4(last_))); }
  I4 code(F4 v) const { return __builtin_convertvector(nearest(v), I4) - static_cast<int32_t>(first_); }

 private:
  float first_, last_;
};

// Up to 256 ascending numbers.
class TableLevels {
 public:
  static constexpr int kMost = 256;

  explicit TableLevels(std::span<const float> levels) : count_(static_cast<int>(levels.size())) {
    std::ranges::copy(levels, levels_);
    for (int i = 0; i + 1 < count_; ++i) middle_[i] = (levels_[i] + levels_[i + 1]) / 2;
  }

  float first() const { return levels_[0]; }
  float last() const { return levels_[count_ - 1]; }
  float reach() const { return static_cast<float>(count_) / 2; }
  F4 nearest(F4 v) const {
    const I4 at = code(v);
    return F4{levels_[at[0]], levels_[at[1]], levels_[at[2]], levels_[at[3]]};
  }
  I4 code(F4 v) const {
    I4 at{};
    if (count_ <= kScanned) {
      for (int i = 0; i + 1 < count_; ++i) at -= v > all4(middle_[i]);  // true is -1
      return at;
    }
    for (int lane = 0; lane < kWide; ++lane) {
      at[lane] = static_cast<int32_t>(std::lower_bound(middle_, middle_ + count_ - 1, v[lane]) - middle_);
    }
    return at;
  }

 private:
  static constexpr int kScanned = 32;  // a search costs as much as going through these
  int count_;
  float levels_[kMost];
  float middle_[kMost];
};

}  // namespace cpuinfer
