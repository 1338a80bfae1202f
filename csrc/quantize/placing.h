// The codes of a block whose scales are known.
#pragma once

#include <cstdint>

#include "kernels/codebooks.h"
#include "quantize/block_types.h"
#include "quantize/lanes.h"
#include "quantize/levels.h"

namespace cpuinfer {

inline const TableLevels& iq4_nl_levels() {
  static const TableLevels levels = [] {
    float numbers[16];
    for (int i = 0; i < 16; ++i) numbers[i] = kIq4NlNumbers[i];
    return TableLevels(numbers);
  }();
  return levels;
}

// Calls f with the levels of a type.
template <typename F>
__attribute__((always_inline)) inline auto with_levels(const BlockType& type, const F& f) {
  if (type.levels == Levels::kIq4Nl) return f(iq4_nl_levels());
  return f(IntegerLevels(static_cast<float>(type.first), static_cast<float>(type.last)));
}

// Of `count` numbers, a multiple of 4: the codes of the levels that, times scale and plus offset, are nearest.
template <typename AnyLevels>
__attribute__((always_inline)) inline void place(const AnyLevels& levels, const float* x, int64_t count, float scale,
                                                 float offset, uint8_t* codes) {
  const F4 inverse = all4(reciprocal(scale)), shift = all4(offset);
  store_each(count, codes, [&](int64_t i) { return levels.code((load4(x + i) - shift) * inverse); });
}

__attribute__((always_inline)) inline void place_block(const BlockType& type, const BlockScales& scales, const float* x,
                                                       uint8_t* codes) {
  with_levels(type, [&](const auto& levels) {
    for (int g = 0; g < type.groups(); ++g) {
      const int at = g * type.group;
      place(levels, x + at, type.group, scales.scale_of(g), scales.offset_of(g), codes + at);
    }
  });
}

}  // namespace cpuinfer
