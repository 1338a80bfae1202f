// Four floats at a time in plain code: what every processor of the baseline has in a register.
#pragma once

#include <cstdint>
#include <cstring>

namespace cpuinfer {

typedef float F4 __attribute__((vector_size(16)));
typedef int32_t I4 __attribute__((vector_size(16)));
constexpr int kWide = 4;

inline F4 load4(const float* from) {
  F4 v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

inline void store4(float* to, F4 v) { std::memcpy(to, &v, sizeof v); }

inline F4 all4(float x) { return F4{x, x, x, x}; }
inline F4 min4(F4 a, F4 b) { return a < b ? a : b; }
inline F4 max4(F4 a, F4 b) { return a > b ? a : b; }
inline float sum4(F4 v) { return (v[0] + v[1]) + (v[2] + v[3]); }
inline float min_of4(F4 v) {
  const float a = v[0] < v[1] ? v[0] : v[1], b = v[2] < v[3] ? v[2] : v[3];
  return a < b ? a : b;
}
inline float max_of4(F4 v) { return -min_of4(-v); }

// To the nearest integer, ties to even; of magnitudes below 2^22, whose sum with 1.5 x 2^23 has a last bit of 1.
inline F4 round4(F4 v) {
  const F4 shift = all4(0x1.8p23f);
  return (v + shift) - shift;
}

// Of 0 the reciprocal is 0, so that everything is placed at the level nearest to 0.
inline float reciprocal(float x) { return x == 0 ? 0 : 1 / x; }

// The low bytes of four or sixteen lanes.
inline void store_bytes(I4 v, uint8_t* to) {
  typedef uint8_t B4 __attribute__((vector_size(4)));
  const B4 bytes = __builtin_convertvector(v, B4);
  std::memcpy(to, &bytes, sizeof bytes);
}

inline void store_bytes(const I4 (&v)[4], uint8_t* to) {
  typedef int32_t I16 __attribute__((vector_size(64)));
  typedef uint8_t B16 __attribute__((vector_size(16)));
  I16 wide;
  std::memcpy(&wide, v, sizeof wide);
  const B16 bytes = __builtin_convertvector(wide, B16);
  std::memcpy(to, &bytes, sizeof bytes);
}

// The bytes of f(i), four of a vector, for i = 0, 4, ... below `count`.
template <typename F>
__attribute__((always_inline)) inline void store_each(int64_t count, uint8_t* to, const F& f) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const I4 v[4] = {f(i), f(i + 4), f(i + 8), f(i + 12)};
    store_bytes(v, to + i);
  }
  for (; i < count; i += kWide) store_bytes(f(i), to + i);
}

}  // namespace cpuinfer
