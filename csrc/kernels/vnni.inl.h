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

}  // namespace

#include "kernels/bodies.inl.h"
