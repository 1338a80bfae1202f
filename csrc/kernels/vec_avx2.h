// The vector operations the shared bodies use, on 256-bit registers: two parts are the 16 lanes.
#pragma once

#include <immintrin.h>

#include "kernels/kernels.h"
#include "kernels/stage.h"

namespace cpuinfer {
namespace {

constexpr int kPartLanes = 8;
constexpr int kParts = kLanes / kPartLanes;
constexpr int kIntegerRows = kTileRows;           // the integer sums stay in registers, the float sums on the stack
constexpr int kFloatRows = 4;                     // with two parts each, 8 of the 16 registers accumulate
constexpr int kStageRows = 2, kColumns = kParts;  // of a stage at once: 4 integer sums and 4 of floats

using Part = __m256;
using Bits = __m256i;

inline Part fused(Part a, Part b, Part c) { return _mm256_fmadd_ps(a, b, c); }
inline Part larger(Part a, Part b) { return _mm256_max_ps(a, b); }
inline Part smaller(Part a, Part b) { return _mm256_min_ps(a, b); }
inline Part fill(float value) { return _mm256_set1_ps(value); }

inline __m256i first(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int32_t>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Part load(const float* p) { return _mm256_loadu_ps(p); }
inline Part load_first(const float* p, int64_t n) { return _mm256_maskload_ps(p, first(n)); }
inline Part load_half(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Part load_bfloat(const uint16_t* p) {
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
inline void store(float* p, Part a) { _mm256_storeu_ps(p, a); }
inline void store_first(float* p, Part a, int64_t n) { _mm256_maskstore_ps(p, first(n), a); }
inline void store_half(uint16_t* p, Part a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}

inline Bits as_bits(Part a) { return _mm256_castps_si256(a); }
inline Part as_floats(Bits a) { return _mm256_castsi256_ps(a); }
inline Bits fill_bits(int32_t value) { return _mm256_set1_epi32(value); }
inline Bits plus(Bits a, Bits b) { return _mm256_add_epi32(a, b); }
inline Bits minus(Bits a, Bits b) { return _mm256_sub_epi32(a, b); }
inline Bits times(Bits a, Bits b) { return _mm256_mullo_epi32(a, b); }
inline Bits times_256(Bits a) { return _mm256_slli_epi32(a, 8); }
inline Bits widen_bytes(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
inline Bits both(Bits a, Bits b) { return _mm256_and_si256(a, b); }
inline Bits larger(Bits a, Bits b) { return _mm256_max_epi32(a, b); }
inline int32_t largest_of(Bits a) {
  const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}
inline int32_t total_of(Bits a) {
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}
inline Bits halved(Bits a) { return _mm256_srai_epi32(a, 1); }
inline Bits to_exponent(Bits a) { return _mm256_slli_epi32(a, 23); }
inline Bits to_nearest(Part a) { return _mm256_cvtps_epi32(a); }
inline Part to_float(Bits a) { return _mm256_cvtepi32_ps(a); }
inline void store_codes(int8_t* p, Bits a) {  // each lane is in -128 .. 127, so neither pack saturates
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}

// Eight rows of four weight codes, the table entries of a line of such nibbles, and four activation codes repeated.
inline Bits load_codes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Bits low_nibbles(Bits w) { return _mm256_and_si256(w, _mm256_set1_epi8(15)); }
inline Bits high_nibbles(Bits w) { return _mm256_and_si256(_mm256_srli_epi16(w, 4), _mm256_set1_epi8(15)); }
inline void look_up(const uint8_t* table, const uint8_t* part, uint8_t* low, uint8_t* high) {
  const Bits entries = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  const Bits w = load_codes(part);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(low), _mm256_shuffle_epi8(entries, low_nibbles(w)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(high), _mm256_shuffle_epi8(entries, high_nibbles(w)));
}
inline Bits repeat_codes(const int8_t* q) {
  int32_t four;
  __builtin_memcpy(&four, q, sizeof four);
  return _mm256_set1_epi32(four);
}

}  // namespace
}  // namespace cpuinfer
