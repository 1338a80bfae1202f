// How the block encodings with code-books are unpacked: row by row, eight or four codes a look-up.
// Included inside a namespace, after unpack.inl.h.

namespace {

inline uint16_t word16(const uint8_t* p) {
  uint16_t word;
  __builtin_memcpy(&word, p, sizeof word);
  return word;
}
inline uint32_t word32(const uint8_t* p) {
  uint32_t word;
  __builtin_memcpy(&word, p, sizeof word);
  return word;
}

// The row's eight codes from input 8 i on.
inline void put_codes(uint64_t eight, Stage& out, int i, int lane) {
  __builtin_memcpy(out.codes[i * 2] + lane * 4, &eight, 4);
  const uint64_t rest = eight >> 32;
  __builtin_memcpy(out.codes[i * 2 + 1] + lane * 4, &rest, 4);
}

// 64 plus or minus eight magnitudes of at most 63, by the bits of `signs`; no byte carries into the next.
inline uint64_t with_signs(uint64_t magnitudes, uint32_t signs) {
  constexpr uint64_t kEach = 0x0101010101010101u;
  const uint64_t bits = signs * kEach & 0x8040201008040201u;
  const uint64_t negative = ((bits + 0x7f * kEach) & 0x80 * kEach) / 0x80 * 0xff;
  return 64 * kEach + (magnitudes & ~negative) - (magnitudes & negative);
}

// Seven signs whose eighth makes their number even.
inline uint32_t even_signs(uint32_t seven) { return seven | (static_cast<uint32_t>(__builtin_parity(seven)) << 7); }

// body(lane, the row's block, its fp16 scale).
template <int kBytes, typename Body>
inline void each_row(const uint8_t* block, int scale_offset, Body body) {
  float d[kLanes];
  uint16_t bits[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) bits[lane] = word16(block + lane * kBytes + scale_offset);
  for (int p = 0; p < kLanes; p += kPartLanes) store(d + p, load_half(bits + p));
  for (int lane = 0; lane < kLanes; ++lane) body(lane, block + lane * kBytes, d[lane]);
}

// d (2 s + 1) / 8 times signed entries, per 32: d fp16, then eight times four entries [4], and signs and s [4].
struct Iq2Xxs {
  static constexpr int kInputs = 256, kBytes = 66, kScaled = 32, kZero = 64, kLargest = 127;
  static constexpr bool kBias = false, kByRow = true;
  static void unpack(const uint8_t* block, Stage& out) {
    each_row<kBytes>(block, 0, [&](int lane, const uint8_t* row, float d) {
      for (int g = 0; g < 8; ++g) {
        const uint8_t* in = row + 2 + g * 8;
        const uint32_t word = word32(in + 4);
        out.scale[g][lane] = d * (0.125f * static_cast<float>(2 * (word >> 28) + 1));
        for (int i = 0; i < 4; ++i) {
          put_codes(with_signs(kIq2XxsGrid[in[i]], even_signs(word >> 7 * i & 127)), out, g * 4 + i, lane);
        }
      }
    });
  }
};

// d (2 s + 1) / 8 times signed entries, per 16: d fp16, 9 bits of entry and 7 of signs [32], 4-bit s [8].
struct Iq2Xs {
  static constexpr int kInputs = 256, kBytes = 74, kScaled = 16, kZero = 64, kLargest = 127;
  static constexpr bool kBias = false, kByRow = true;
  static void unpack(const uint8_t* block, Stage& out) {
    each_row<kBytes>(block, 0, [&](int lane, const uint8_t* row, float d) {
      for (int i = 0; i < 32; ++i) {
        const uint32_t word = word16(row + 2 + i * 2);
        put_codes(with_signs(kIq2XsGrid[word & 511], even_signs(word >> 9)), out, i, lane);
      }
      for (int s = 0; s < 16; ++s) {
        const int scale = row[66 + s / 2] >> s % 2 * 4 & 15;
        out.scale[s][lane] = d * (0.125f * static_cast<float>(2 * scale + 1));
      }
    });
  }
};

// As IQ2_XS: d fp16, low 8 bits of entries [32], signs [32], high 2 bits [8], s [8].
struct Iq2S {
  static constexpr int kInputs = 256, kBytes = 82, kScaled = 16, kZero = 64, kLargest = 127;
  static constexpr bool kBias = false, kByRow = true;
  static void unpack(const uint8_t* block, Stage& out) {
    each_row<kBytes>(block, 0, [&](int lane, const uint8_t* row, float d) {
      for (int i = 0; i < 32; ++i) {
        const int entry = row[2 + i] | (row[66 + i / 4] >> i % 4 * 2 & 3) << 8;
        put_codes(with_signs(kIq2SGrid[entry], row[34 + i]), out, i, lane);
      }
      for (int s = 0; s < 16; ++s) {
        const int scale = row[74 + s / 2] >> s % 2 * 4 & 15;
        out.scale[s][lane] = d * (0.125f * static_cast<float>(2 * scale + 1));
      }
    });
  }
};

// d (2 s + 1) / 4 times signed entries of four, per 32: d fp16, entries [64], eight words of signs and s.
struct Iq3Xxs {
  static constexpr int kInputs = 256, kBytes = 98, kScaled = 32, kZero = 64, kLargest = 127;
  static constexpr bool kBias = false, kByRow = true;
  static void unpack(const uint8_t* block, Stage& out) {
    each_row<kBytes>(block, 0, [&](int lane, const uint8_t* row, float d) {
      for (int g = 0; g < 8; ++g) {
        const uint8_t* in = row + 2 + g * 8;
        const uint32_t word = word32(row + 66 + g * 4);
        out.scale[g][lane] = d * (0.25f * static_cast<float>(2 * (word >> 28) + 1));
        for (int i = 0; i < 4; ++i) {
          const uint64_t eight = kIq3XxsGrid[in[2 * i]] | uint64_t{kIq3XxsGrid[in[2 * i + 1]]} << 32;
          put_codes(with_signs(eight, even_signs(word >> 7 * i & 127)), out, g * 4 + i, lane);
        }
      }
    });
  }
};

// d (2 s + 1) times signed entries of four, per 32: d fp16, entries [64], their ninth bits [8], signs [32], s [4].
struct Iq3S {
  static constexpr int kInputs = 256, kBytes = 110, kScaled = 32, kZero = 64, kLargest = 127;
  static constexpr bool kBias = false, kByRow = true;
  static void unpack(const uint8_t* block, Stage& out) {
    each_row<kBytes>(block, 0, [&](int lane, const uint8_t* row, float d) {
      const auto entry = [&](int i) { return kIq3SGrid[row[2 + i] | (row[66 + i / 8] >> i % 8 & 1) << 8]; };
      for (int i = 0; i < 32; ++i) {
        put_codes(with_signs(entry(2 * i) | uint64_t{entry(2 * i + 1)} << 32, row[74 + i]), out, i, lane);
      }
      for (int g = 0; g < 8; ++g) {
        out.scale[g][lane] = d * static_cast<float>(2 * (row[106 + g / 2] >> g % 2 * 4 & 15) + 1);
      }
    });
  }
};

// 8 * (entry + delta) + 9 for entries -1, 0, 1 (as 0xff, 0, 1) and delta an eighth: what the lattice of 1-bit encodings
// needs to be integers.
inline uint64_t lattice_codes(uint64_t entries, bool negative) {
  constexpr uint64_t kEach = 0x0101010101010101u;
  const uint64_t ones = entries & kEach, minus_ones = entries >> 1 & kEach;  // |entry|, entry < 0
  return (negative ? 8 : 10) * kEach + 8 * ones - 16 * minus_ones;
}

// d (2 s + 1) (entry + delta) per 32: d fp16, entries [32], words of four high 3 bits, s and the sign [8].
struct Iq1S {
  static constexpr int kInputs = 256, kBytes = 50, kScaled = 32, kZero = 9, kLargest = 18;
  static constexpr bool kBias = false, kByRow = true;
  static void unpack(const uint8_t* block, Stage& out) {
    each_row<kBytes>(block, 0, [&](int lane, const uint8_t* row, float d) {
      for (int g = 0; g < 8; ++g) {
        const uint32_t high = word16(row + 34 + g * 2);
        out.scale[g][lane] = d * (0.125f * static_cast<float>(2 * (high >> 12 & 7) + 1));
        for (int i = 0; i < 4; ++i) {
          const uint32_t entry = row[2 + g * 4 + i] | (high >> 3 * i & 7) << 8;
          put_codes(lattice_codes(kIq1SGrid[entry], high & 0x8000), out, g * 4 + i, lane);
        }
      }
    });
  }
};

// As IQ1_S, s per 16, delta per 8: entries [32], high 3 bits and sign [16], words of d's nibble and four s [4].
struct Iq1M {
  static constexpr int kInputs = 256, kBytes = 56, kScaled = 16, kZero = 9, kLargest = 18;
  static constexpr bool kBias = false, kByRow = true;
  static void unpack(const uint8_t* block, Stage& out) {
    float d[kLanes];
    uint16_t bits[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {  // a nibble of the fp16 scale heads each of four words
      const uint8_t* words = block + lane * kBytes + 48;
      bits[lane] = 0;
      for (int i = 0; i < 4; ++i) bits[lane] = static_cast<uint16_t>(bits[lane] | word16(words + i * 2) >> 12 << 4 * i);
    }
    for (int p = 0; p < kLanes; p += kPartLanes) store(d + p, load_half(bits + p));
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint8_t* row = block + lane * kBytes;
      for (int s = 0; s < 16; ++s) {
        const int scale = word16(row + 48 + s / 4 * 2) >> s % 4 * 3 & 7;
        out.scale[s][lane] = d[lane] * (0.125f * static_cast<float>(2 * scale + 1));
      }
      for (int i = 0; i < 32; ++i) {
        const int high = row[32 + i / 2] >> i % 2 * 4 & 15;
        put_codes(lattice_codes(kIq1SGrid[row[i] | (high & 7) << 8], high & 8), out, i, lane);
      }
    }
  }
};

}  // namespace
