// Rounding to nearest, compiled once for each type.
#include "quantize/plain_blocks.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>

#include "kernels/half.h"
#include "quantize/code_bits.h"
#include "quantize/placing.h"

namespace cpuinfer {

namespace {

#define CPUINFER_INLINE __attribute__((always_inline)) inline

constexpr float kBeyondHalf = 65520;  // rounds to infinity

struct Extremes {
  float low, high;
};

CPUINFER_INLINE Extremes extremes(const float* x, int count) {
  F4 low = load4(x), high = low;
  for (int i = kWide; i < count; i += kWide) {
    low = min4(low, load4(x + i));
    high = max4(high, load4(x + i));
  }
  return {min_of4(low), max_of4(high)};
}

// The number of largest magnitude, of several the first.
CPUINFER_INLINE float largest_of(const float* x, int count) {
  const Extremes e = extremes(x, count);
  if (-e.low != e.high) return -e.low > e.high ? e.low : e.high;
  return *std::find_if(x, x + count - 1, [&](float v) { return std::abs(v) == e.high; });
}

// As the references have it, which round the code before the scale is rounded to fp16, and halves upwards.
struct Rounding {
  float inverse, offset, half;
};

CPUINFER_INLINE void place_truncated(const BlockType& type, const float* x, Rounding by, uint8_t* codes) {
  const F4 inverse = all4(std::isfinite(by.inverse) ? by.inverse : 0.0f), shift = all4(by.offset), half = all4(by.half);
  const F4 last = all4(static_cast<float>(type.last - type.first));
  store_each(type.elements, codes, [&](int64_t i) {
    const F4 raised = (load4(x + i) - shift) * inverse + half;
    return __builtin_convertvector(min4(max4(raised, all4(0)), last), I4);
  });
}

// Half away from zero.
CPUINFER_INLINE void place_rounded(const BlockType& type, const float* x, float inverse, uint8_t* codes) {
  const F4 by = all4(std::isfinite(inverse) ? inverse : 0.0f);
  store_each(type.elements, codes, [&](int64_t i) {
    const F4 v = load4(x + i) * by;
    // The number before 0.5 makes halves a whole number and nothing below them one, as 0.5 itself would.
    const F4 half = (F4)(((I4)v & INT32_MIN) | (I4)all4(0x1.fffffep-2f));
    return __builtin_convertvector(v + half, I4) - type.first;
  });
}

CPUINFER_INLINE void one_level(const BlockType& type, const float* x, BlockScales& s, uint8_t* codes) {
  s.scale.number[0] = s.offset.number[0] = 1;
  if (type.has_offset()) {
    const Extremes e = extremes(x, type.elements);
    const float scale = (e.high - e.low) / static_cast<float>(type.last);
    place_truncated(type, x, {reciprocal(scale), e.low, 0.5f}, codes);
    s.scale.factor = scale;
    s.offset.factor = e.low;
    return;
  }
  const float largest = largest_of(x, type.elements);
  if (type.last == 127) {  // Q8_0
    s.scale.factor = std::abs(largest) / 127.0f;
    place_rounded(type, x, reciprocal(s.scale.factor), codes);
    return;
  }
  s.scale.factor = largest / static_cast<float>(type.first);
  if (type.levels == Levels::kIntegers) {
    place_truncated(type, x, {reciprocal(s.scale.factor), 0, 0.5f - static_cast<float>(type.first)}, codes);
    return;
  }
  s.scale.factor = half_to_float(float_to_half(s.scale.factor));
  place_block(type, s, x, codes);
}

CPUINFER_INLINE void two_levels(const BlockType& type, const float* x, BlockScales& s, uint8_t* codes) {
  float scale[kMostGroups], offset[kMostGroups];
  const auto groups = static_cast<std::size_t>(type.groups());
  for (int g = 0; g < type.groups(); ++g) {
    const float* from = x + g * type.group;
    if (type.has_offset()) {
      const Extremes e = extremes(from, type.group);
      offset[g] = std::min(e.low, 0.0f);
      scale[g] = (std::max(e.high, 0.0f) - offset[g]) / static_cast<float>(type.last);
    } else {
      scale[g] = largest_of(from, type.group) / static_cast<float>(type.first);
    }
  }
  s.scale = plain_levels(std::span(scale, groups), type.scales);
  if (type.has_offset()) s.offset = plain_levels(std::span(offset, groups), type.offsets);
  place_block(type, s, x, codes);
}

template <int kType>
bool write_all(const float* x, int64_t blocks, uint8_t* to) noexcept {
  constexpr BlockType kThis = kBlockTypes[kType];
  bool fits = true;
  for (int64_t b = 0; b < blocks; ++b, x += kThis.elements, to += kThis.bytes) {
    uint8_t codes[kThis.elements];
    BlockScales s;
    if constexpr (kThis.has_two_levels()) {
      two_levels(kThis, x, s, codes);
    } else {
      one_level(kThis, x, s, codes);
    }
    write_scales(kThis, s, to);
    put_codes(kThis, codes, to);
    fits &= std::abs(s.scale.factor) < kBeyondHalf && std::abs(s.offset.factor) < kBeyondHalf;
  }
  return fits;
}

using Writer = bool (*)(const float*, int64_t, uint8_t*) noexcept;

template <int... kType>
Writer writer_of(std::ptrdiff_t type, std::integer_sequence<int, kType...>) {
  static constexpr Writer kWriters[] = {&write_all<kType>...};
  return kWriters[type];
}

}  // namespace

bool write_plain(const BlockType& type, const float* x, int64_t blocks, uint8_t* to) noexcept {
  constexpr int kCount = static_cast<int>(std::size(kBlockTypes));
  return writer_of(&type - kBlockTypes, std::make_integer_sequence<int, kCount>())(x, blocks, to);
}

}  // namespace cpuinfer
