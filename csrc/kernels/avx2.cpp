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

constexpr int kStagedRows = kTileRows;  // so many rows of integer codes, and more, are multiplied from a stage

// Of several rows: two steps at once, from a start that holds the offset.
struct TwoLines {
  Bits a, b;
};

// Sums in the order written: another one, which integers allow, keeps more products than there are registers.
inline Bits settled(Bits sums) {
  asm("" : "+x"(sums));
  return sums;
}

// Codes 0 .. 15 less z, 0 .. 8, in 16 bits throughout, where sums wrap: the lower of a row's two 16-bit lanes takes the
// whole offset.  It ends as sum (w - z) q - z sum q' with the codes q' of the upper: at most (8 + 8) x 16 x 127 =
// 32512.
struct NibbleRows {
  using Sums = Bits;
  using Two = TwoLines;
  static constexpr int32_t kCentre = 0;
  static constexpr bool kSettles = false;
  static int32_t start_word(int32_t offset) { return offset & 0xffff; }
  static Sums start(int32_t word, const int32_t*) { return fill_bits(word); }
  static Two two(const uint8_t* codes, const uint8_t*) { return {load_codes(codes), load_codes(codes + kLine)}; }
  static Sums step(Sums pairs, const Two& w, Bits a, Bits b) {
    pairs = settled(_mm256_add_epi16(pairs, _mm256_maddubs_epi16(w.a, a)));
    return settled(_mm256_add_epi16(pairs, _mm256_maddubs_epi16(w.b, b)));
  }
  static Bits finish(Sums pairs) { return widen_pairs(pairs); }
};

// Codes 0 .. 63: two steps stay in 16 bits, 2 x 2 x 63 x 127 = 32004.
struct SixBitRows : NibbleRows {
  static int32_t start_word(int32_t offset) { return offset; }
  static Sums step(Sums sums, const Two& w, Bits a, Bits b) {
    const Bits pairs = _mm256_add_epi16(_mm256_maddubs_epi16(w.a, a), _mm256_maddubs_epi16(w.b, b));
    return settled(plus(sums, widen_pairs(pairs)));
  }
  static Bits finish(Sums sums) { return sums; }
};

// Codes 0 .. 127: a pair is at most 2 x 127 x 127 = 32258.
struct SmallByteRows : SixBitRows {
  static Sums step(Sums sums, const Two& w, Bits a, Bits b) {
    sums = settled(plus(sums, widen_pairs(_mm256_maddubs_epi16(w.a, a))));
    return settled(plus(sums, widen_pairs(_mm256_maddubs_epi16(w.b, b))));
  }
};

// Codes 0 .. 255 less 128, as |w| times q, the bits of q turned where w < 0: ~q = -q - 1, so that |w| is missing, which
// the start holds.  A pair is within 2 x 128 x 127 = 32512 or, where turned, 2 x 128 x -128 = -32768.
struct ByteRows : SixBitRows {
  struct Two {
    Bits a, b, a_signs, b_signs;
  };
  static constexpr int32_t kCentre = 128;
  static constexpr bool kSettles = true;
  static void settle(Stage& stage, uint8_t (*signs)[kLine], int32_t (*start)[kLanes], int inputs, int scaled) {
    for (int at = 0; at < inputs / scaled; ++at) {
      for (int p = 0; p < kLine; p += static_cast<int>(sizeof(Bits))) {
        Bits missing = fill_bits(0);
        for (int line = at * scaled / 4; line < (at + 1) * scaled / 4; ++line) {
          const Bits w = _mm256_xor_si256(load_codes(stage.codes[line] + p), _mm256_set1_epi8(-128));
          const Bits size = _mm256_abs_epi8(w), sign = _mm256_cmpgt_epi8(fill_bits(0), w);
          _mm256_store_si256(reinterpret_cast<Bits*>(stage.codes[line] + p), size);
          _mm256_store_si256(reinterpret_cast<Bits*>(signs[line] + p), sign);
          // |w| of the negative times 1, a pair at most 256
          const Bits pairs = _mm256_maddubs_epi16(_mm256_and_si256(size, sign), _mm256_set1_epi8(1));
          missing = plus(missing, widen_pairs(pairs));
        }
        _mm256_store_si256(reinterpret_cast<Bits*>(start[at] + p / 4), missing);
      }
    }
  }
  static Sums start(int32_t word, const int32_t* missing) {
    return plus(fill_bits(word), _mm256_load_si256(reinterpret_cast<const Bits*>(missing)));
  }
  static Two two(const uint8_t* codes, const uint8_t* signs) {
    return {load_codes(codes), load_codes(codes + kLine), load_codes(signs), load_codes(signs + kLine)};
  }
  static Sums step(Sums sums, const Two& w, Bits a, Bits b) {
    sums = settled(plus(sums, widen_pairs(_mm256_maddubs_epi16(w.a, _mm256_xor_si256(a, w.a_signs)))));
    return settled(plus(sums, widen_pairs(_mm256_maddubs_epi16(w.b, _mm256_xor_si256(b, w.b_signs)))));
  }
};

}  // namespace

#include "kernels/bodies.inl.h"

}  // namespace cpuinfer::avx2
