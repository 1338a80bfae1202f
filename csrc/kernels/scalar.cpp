// The kernel set of portable C++: runs everywhere, and is what every other set must equal bit for bit.
#include "kernels/isa.h"
#include "kernels/vec_scalar.h"

namespace cpuinfer::scalar {

namespace {

struct Codes {  // 16 rows of four
  uint8_t code[kLanes * 4];
};

inline Codes load_codes(const uint8_t* p) {
  Codes w;
  std::memcpy(&w, p, sizeof w);
  return w;
}
inline Codes low_nibbles(Codes w) {
  for (uint8_t& code : w.code) code &= 15;
  return w;
}
inline Codes high_nibbles(Codes w) {
  for (uint8_t& code : w.code) code = static_cast<uint8_t>(code >> 4);
  return w;
}
inline const int8_t* repeat_codes(const int8_t* q) { return q; }

struct Dot {
  using Sums = Bits;
  static constexpr int32_t kCentre = 0;
  static Bits start(int32_t offset) { return fill_bits(offset); }
  static Bits step(Bits sums, const Codes& w, const int8_t* q) {
    for (int row = 0; row < kLanes; ++row) {
      int32_t sum = 0;
      for (int j = 0; j < 4; ++j) sum += w.code[row * 4 + j] * q[j];
      sums.lane[row] += static_cast<uint32_t>(sum);
    }
    return sums;
  }
  static Bits finish(Bits sums, int32_t) { return sums; }
};
using NibbleDot = Dot;
using ByteDot = Dot;
using SmallByteDot = Dot;

// Signed codes of values, and shares of 0 .. 127.
inline Bits add_shares(Bits sums, const Codes& values, const int8_t* shares) {
  for (int row = 0; row < kLanes; ++row) {
    int32_t sum = 0;
    for (int j = 0; j < 4; ++j) sum += static_cast<int8_t>(values.code[row * 4 + j]) * shares[j];
    sums.lane[row] += static_cast<uint32_t>(sum);
  }
  return sums;
}

constexpr int kStagedRows = 2;  // so many rows of integer codes, and more, are multiplied from a stage

struct DotRows {
  using Sums = Bits;
  struct Two {
    Codes a, b;
  };
  static constexpr int32_t kCentre = 0;
  static constexpr bool kSettles = false;
  static int32_t start_word(int32_t offset) { return offset; }
  static Sums start(int32_t word, const int32_t*) { return fill_bits(word); }
  static Two two(const uint8_t* codes, const uint8_t*) { return {load_codes(codes), load_codes(codes + kLine)}; }
  static Sums step(const Sums& sums, const Two& w, const int8_t* a, const int8_t* b) {
    return Dot::step(Dot::step(sums, w.a, a), w.b, b);
  }
  static Bits finish(const Sums& sums) { return sums; }
};
using NibbleRows = DotRows;
using SixBitRows = DotRows;
using SmallByteRows = DotRows;
using ByteRows = DotRows;

}  // namespace

#include "kernels/bodies.inl.h"

}  // namespace cpuinfer::scalar
