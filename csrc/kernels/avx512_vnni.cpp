// The kernel set for AVX-512 with VNNI: one register holds a panel's 16 rows of four codes.
#include "kernels/isa.h"
#include "kernels/vec_avx512.h"

namespace cpuinfer::avx512_vnni {

namespace {

inline Bits load_codes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline Bits low_nibbles(Bits w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }
inline Bits high_nibbles(Bits w) { return _mm512_and_si512(_mm512_srli_epi16(w, 4), _mm512_set1_epi8(15)); }
inline Bits repeat_codes(const int8_t* q) {
  int32_t four;
  __builtin_memcpy(&four, q, sizeof four);
  return _mm512_set1_epi32(four);
}

struct Dot {
  using Sums = Bits;
  static constexpr int32_t kCentre = 0;
  static Bits start(int32_t offset) { return fill_bits(offset); }
  static Bits step(Bits sums, Bits w, Bits q) { return _mm512_dpbusd_epi32(sums, w, q); }
  static Bits finish(Bits sums, int32_t) { return sums; }
};
using NibbleDot = Dot;
using ByteDot = Dot;

}  // namespace

#include "kernels/bodies.inl.h"

}  // namespace cpuinfer::avx512_vnni
