// The vector operations the shared bodies use, in portable C++: one part is all 16 lanes.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/half.h"
#include "kernels/kernels.h"
#include "kernels/stage.h"

namespace cpuinfer {
namespace {

constexpr int kPartLanes = kLanes;
constexpr int kParts = kLanes / kPartLanes;
constexpr int kIntegerRows = 1;  // no registers to fill: one row at a time
constexpr int kFloatRows = 1;
constexpr int kStageRows = 1, kColumns = kParts;

struct Part {
  float lane[kLanes];
};
struct Bits {
  uint32_t lane[kLanes];
};

template <typename Out, typename F>
inline Out each(F f) {
  Out out;
  for (int i = 0; i < kLanes; ++i) out.lane[i] = f(i);
  return out;
}
inline Part operator+(const Part& a, const Part& b) {
  return each<Part>([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline Part operator-(const Part& a, const Part& b) {
  return each<Part>([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline Part operator*(const Part& a, const Part& b) {
  return each<Part>([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline Part operator/(const Part& a, const Part& b) {
  return each<Part>([&](int i) { return a.lane[i] / b.lane[i]; });
}
inline Part fused(const Part& a, const Part& b, const Part& c) {
  return each<Part>([&](int i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); });
}
inline Part larger(const Part& a, const Part& b) {
  return each<Part>([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Part smaller(const Part& a, const Part& b) {
  return each<Part>([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Part fill(float value) {
  return each<Part>([&](int) { return value; });
}

inline Part load(const float* p) {
  return each<Part>([&](int i) { return p[i]; });
}
inline Part load_first(const float* p, int64_t n) {
  return each<Part>([&](int i) { return i < n ? p[i] : 0.0f; });
}
inline Part load_half(const uint16_t* p) {
  return each<Part>([&](int i) { return half_to_float(p[i]); });
}
inline Part load_bfloat(const uint16_t* p) {
  return each<Part>([&](int i) { return std::bit_cast<float>(static_cast<uint32_t>(p[i]) << 16); });
}
inline void store_first(float* p, const Part& a, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = a.lane[i];
}
inline void store(float* p, const Part& a) { store_first(p, a, kLanes); }
inline void store_half(uint16_t* p, const Part& a) {
  for (int i = 0; i < kLanes; ++i) p[i] = float_to_half(a.lane[i]);
}

inline Bits as_bits(const Part& a) { return std::bit_cast<Bits>(a); }
inline Part as_floats(const Bits& a) { return std::bit_cast<Part>(a); }
inline Bits fill_bits(int32_t value) {
  return each<Bits>([&](int) { return static_cast<uint32_t>(value); });
}
inline Bits plus(const Bits& a, const Bits& b) {
  return each<Bits>([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline Bits minus(const Bits& a, const Bits& b) {
  return each<Bits>([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline Bits times(const Bits& a, const Bits& b) {
  return each<Bits>([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline Bits times_256(const Bits& a) {
  return each<Bits>([&](int i) { return a.lane[i] << 8; });
}
inline Bits widen_bytes(const uint8_t* p) {
  return each<Bits>([&](int i) { return uint32_t{p[i]}; });
}
inline Bits both(const Bits& a, const Bits& b) {
  return each<Bits>([&](int i) { return a.lane[i] & b.lane[i]; });
}
inline Bits larger(const Bits& a, const Bits& b) {
  return each<Bits>(
      [&](int i) { return static_cast<int32_t>(a.lane[i]) > static_cast<int32_t>(b.lane[i]) ? a.lane[i] : b.lane[i]; });
}
inline int32_t largest_of(const Bits& a) {
  int32_t most = static_cast<int32_t>(a.lane[0]);
  for (const uint32_t lane : a.lane) most = std::max(most, static_cast<int32_t>(lane));
  return most;
}
inline int32_t total_of(const Bits& a) {
  uint32_t total = 0;
  for (const uint32_t lane : a.lane) total += lane;
  return static_cast<int32_t>(total);
}
inline Bits halved(const Bits& a) {
  return each<Bits>([&](int i) { return static_cast<uint32_t>(static_cast<int32_t>(a.lane[i]) >> 1); });
}
inline Bits to_exponent(const Bits& a) {
  return each<Bits>([&](int i) { return a.lane[i] << 23; });
}
inline Bits to_nearest(const Part& a) {
  return each<Bits>([&](int i) { return static_cast<uint32_t>(std::lrint(a.lane[i])); });
}
inline Part to_float(const Bits& a) {
  return each<Part>([&](int i) { return static_cast<float>(static_cast<int32_t>(a.lane[i])); });
}
inline void store_codes(int8_t* p, const Bits& a) {
  for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int8_t>(a.lane[i]);
}

// The table entries of a line of 64 pairs of nibbles.
inline void look_up(const uint8_t* table, const uint8_t* line, uint8_t* low, uint8_t* high) {
  for (int i = 0; i < 64; ++i) {
    low[i] = table[line[i] & 15];
    high[i] = table[line[i] >> 4];
  }
}

}  // namespace
}  // namespace cpuinfer
