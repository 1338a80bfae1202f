// The vector operations the shared bodies use, on 512-bit registers: one part is all 16 lanes.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push  // GCC 12's _mm512_undefined_ps() initialises a variable from itself
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#include "kernels/kernels.h"
#include "kernels/stage.h"

namespace cpuinfer {
namespace {

constexpr int kPartLanes = 16;
constexpr int kParts = kLanes / kPartLanes;
constexpr int kIntegerRows = kTileRows;
constexpr int kFloatRows = kTileRows;
constexpr int kStageRows = 4, kColumns = 2;  // of a stage at once: 8 integer sums and 8 of floats

using Part = __m512;
using Bits = __m512i;

inline __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }

inline Part fused(Part a, Part b, Part c) { return _mm512_fmadd_ps(a, b, c); }
inline Part larger(Part a, Part b) { return _mm512_max_ps(a, b); }
inline Part smaller(Part a, Part b) { return _mm512_min_ps(a, b); }
inline Part fill(float value) { return _mm512_set1_ps(value); }

inline Part load(const float* p) { return _mm512_loadu_ps(p); }
inline Part load_first(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
inline Part load_half(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Part load_bfloat(const uint16_t* p) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
inline void store(float* p, Part a) { _mm512_storeu_ps(p, a); }
inline void store_first(float* p, Part a, int64_t n) { _mm512_mask_storeu_ps(p, first(n), a); }
inline void store_half(uint16_t* p, Part a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}

inline Bits as_bits(Part a) { return _mm512_castps_si512(a); }
inline Part as_floats(Bits a) { return _mm512_castsi512_ps(a); }
inline Bits fill_bits(int32_t value) { return _mm512_set1_epi32(value); }
inline Bits plus(Bits a, Bits b) { return _mm512_add_epi32(a, b); }
inline Bits minus(Bits a, Bits b) { return _mm512_sub_epi32(a, b); }
inline Bits times(Bits a, Bits b) { return _mm512_mullo_epi32(a, b); }
inline Bits times_256(Bits a) { return _mm512_slli_epi32(a, 8); }
inline Bits widen_bytes(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Bits both(Bits a, Bits b) { return _mm512_and_si512(a, b); }
inline Bits larger(Bits a, Bits b) { return _mm512_max_epi32(a, b); }
inline int32_t largest_of(Bits a) { return _mm512_reduce_max_epi32(a); }
inline int32_t total_of(Bits a) { return _mm512_reduce_add_epi32(a); }
inline Bits halved(Bits a) { return _mm512_srai_epi32(a, 1); }
inline Bits to_exponent(Bits a) { return _mm512_slli_epi32(a, 23); }
inline Bits to_nearest(Part a) { return _mm512_cvtps_epi32(a); }
inline Part to_float(Bits a) { return _mm512_cvtepi32_ps(a); }
inline void store_codes(int8_t* p, Bits a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a)); }

// Sixteen rows of four weight codes, the table entries of a line of such nibbles, and four activation codes repeated.
inline Bits load_codes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline Bits low_nibbles(Bits w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }
inline Bits high_nibbles(Bits w) { return _mm512_and_si512(_mm512_srli_epi16(w, 4), _mm512_set1_epi8(15)); }
inline void look_up(const uint8_t* table, const uint8_t* part, uint8_t* low, uint8_t* high) {
  const Bits entries = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  const Bits w = load_codes(part);
  _mm512_storeu_si512(low, _mm512_shuffle_epi8(entries, low_nibbles(w)));
  _mm512_storeu_si512(high, _mm512_shuffle_epi8(entries, high_nibbles(w)));
}
inline Bits repeat_codes(const int8_t* q) {
  int32_t four;
  __builtin_memcpy(&four, q, sizeof four);
  return _mm512_set1_epi32(four);
}

}  // namespace
}  // namespace cpuinfer
