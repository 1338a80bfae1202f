// The kernel set for AVX2 with FMA and F16C: dot products from 16-bit pair sums that provably never saturate.
#include "kernels/isa.h"
#include "kernels/vec_avx2.h"

namespace cpuinfer::avx2 {

namespace {

inline Bits widen_pairs(Bits pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }

// Codes 0 .. 15: the eight steps of a group stay in 16 bits, 8 x 2 x 15 x 127 = 30480.
struct NibbleDot {
  using Sums = Bits;
  static constexpr int32_t kCentre = 0;
  static Bits start(int32_t) { return fill_bits(0); }
  static Bits step(Bits pairs, Bits w, Bits q) { return _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w, q)); }
  static Bits finish(Bits pairs, int32_t offset) { return plus(widen_pairs(pairs), fill_bits(offset)); }
};

// Codes 0 .. 255 less 128, as |w| times q with w's sign: a pair is at most 2 x 128 x 127 = 32512.
struct ByteDot {
  using Sums = Bits;
  static constexpr int32_t kCentre = 128;
  static Bits start(int32_t offset) { return fill_bits(offset); }
  static Bits step(Bits sums, Bits w, Bits q) {
    const Bits centred = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
    const Bits pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(centred), _mm256_sign_epi8(q, centred));
    return plus(sums, widen_pairs(pairs));
  }
  static Bits finish(Bits sums, int32_t) { return sums; }
};

// Codes 0 .. 127 as they are: a pair is at most 2 x 127 x 127 = 32258.
struct SmallByteDot {
  using Sums = Bits;
  static constexpr int32_t kCentre = 0;
  static Bits start(int32_t offset) { return fill_bits(offset); }
  static Bits step(Bits sums, Bits w, Bits q) { return plus(sums, widen_pairs(_mm256_maddubs_epi16(w, q))); }
  static Bits finish(Bits sums, int32_t) { return sums; }
};

// Signed codes of values, and shares of 0 .. 127: a pair is at most 2 x 127 x 128 = 32512.
inline Bits add_shares(Bits sums, Bits values, Bits shares) {
  return plus(sums, widen_pairs(_mm256_maddubs_epi16(shares, values)));
}

}  // namespace

#include "kernels/bodies.inl.h"

}  // namespace cpuinfer::avx2
