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

inline void store_codes(I4 codes, uint8_t* to) {
  typedef uint8_t B4 __attribute__((vector_size(4)));
  const B4 bytes = __builtin_convertvector(codes, B4);
  __builtin_memcpy(to, &bytes, sizeof bytes);
}

// Of `count` numbers, a multiple of 4: the codes of the levels that, times scale and plus offset, are nearest.
template <typename AnyLevels>
__attribute__((always_inline)) inline void place(const AnyLevels& levels, const float* x, int64_t count, float scale,
                                                 float offset, uint8_t* codes) {
  const F4 inverse = all4(reciprocal(scale)), shift = all4(offset);
  for (int64_t i = 0; i < count; i += kWide) {
    store_codes(levels.code((load4(x + i) - shift) * inverse), codes + i);
  }
}

__attribute__((always_inline)) inline void place_block(const BlockType& type, const BlockScales& scales,
                                                       const float* x, uint8_t* codes) {
  with_levels(type, [&](const auto& levels) {
    for (int g = 0; g < type.groups(); ++g) {
      const int at = g * type.group;
      place(levels, x + at, type.group, scales.scale_of(g), scales.offset_of(g), codes + at);
    }
  });
}

}  // namespace cpuinfer
