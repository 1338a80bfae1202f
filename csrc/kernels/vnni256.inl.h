// Body of the 256-bit VNNI kernels over the including file's dot_product; apart from avx_vnni.cpp so that tests can run
// it with the AVX-512 encoding of the same instruction on machines that have only that.

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

}  // namespace

#include "kernels/bodies.inl.h"
