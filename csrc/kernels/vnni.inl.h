// Body of the VNNI kernels, over the including file's dot_product and the parts of its vector header.

namespace {

struct Dot {
  using Sums = Bits;
  static constexpr int32_t kCentre = 0;
  static Bits start(int32_t offset) { return fill_bits(offset); }
  static Bits step(Bits sums, Bits w, Bits q) { return dot_product(sums, w, q); }
  static Bits finish(Bits sums, int32_t) { return sums; }
};
using NibbleDot = Dot;
using ByteDot = Dot;
using SmallByteDot = Dot;

// Signed codes of values, and shares of 0 .. 127.
inline Bits add_shares(Bits sums, Bits values, Bits shares) { return dot_product(sums, shares, values); }

constexpr int kStagedRows = 2 * kTileRows + 1;  // so many rows of integer codes, and more, are multiplied from a stage

// Of several rows: two steps at once, from a start that holds the offset.
struct DotRows {
  using Sums = Bits;
  struct Two {
    Bits a, b;
  };
  static constexpr int32_t kCentre = 0;
  static constexpr bool kSettles = false;
  static int32_t start_word(int32_t offset) { return offset; }
  static Sums start(int32_t word, const int32_t*) { return fill_bits(word); }
  static Two two(const uint8_t* codes, const uint8_t*) { return {load_codes(codes), load_codes(codes + kLine)}; }
  static Sums step(Sums sums, const Two& w, Bits a, Bits b) { return dot_product(dot_product(sums, w.a, a), w.b, b); }
  static Bits finish(Sums sums) { return sums; }
};
using NibbleRows = DotRows;
using SixBitRows = DotRows;
using SmallByteRows = DotRows;
using ByteRows = DotRows;

}  // namespace

#include "kernels/bodies.inl.h"
