// How each block encoding is unpacked to a stage: exact integers and products, so the same bits whoever compiles it.
// Included inside a namespace, after a vec_*.h.

namespace {

// Vectors of the compiler's own, which it makes of whatever registers the including file's flags allow: a part of the
// lanes of a line, which is 16 rows of four codes.
constexpr int kPartBytes = kPartLanes * 4;
using Line = uint8_t __attribute__((vector_size(kPartBytes)));
using Words = uint32_t __attribute__((vector_size(kPartBytes)));  // a row's four codes each
using Bytes = uint8_t __attribute__((vector_size(kLanes)));       // one a row

// Part of a panel's block: `offset` bytes into each row's block, so 16 times that into the panel's.
inline const uint8_t* field(const uint8_t* block, int offset) { return block + offset * kLanes; }

template <typename Vector>
inline Vector read(const uint8_t* p) {
  Vector vector;
  __builtin_memcpy(&vector, p, sizeof vector);
  return vector;
}
template <int p>
inline Line line_at(const uint8_t* lines, int i) {
  return read<Line>(lines + i * kLine + p * kPartBytes);
}
template <int p>
inline Words words_at(const uint8_t* lines, int i) {
  return read<Words>(lines + i * kLine + p * kPartBytes);
}
inline Bytes bytes_at(const uint8_t* rows, int i) { return read<Bytes>(rows + i * kLanes); }

// Sixteen fp32 numbers, one a row, in as many parts as a register holds.
struct Floats {
  Part part[kParts];
};

inline Floats halves_at(const uint8_t* halves) {
  Floats out;
  for (int p = 0; p < kParts; ++p) {
    uint16_t bits[kPartLanes];
    __builtin_memcpy(bits, halves + p * sizeof bits, sizeof bits);
    out.part[p] = load_half(bits);
  }
  return out;
}

inline void write(const Floats& floats, float* out) {
  for (int p = 0; p < kParts; ++p) store(out + p * kPartLanes, floats.part[p]);
}

inline Floats negative(Floats floats) {
  for (Part& part : floats.part) part = fill(0.0f) - part;
  return floats;
}

// out = d times small integers, exact: 11 bits of an fp16 times at most 8.
inline void write_scaled(const Floats& d, Bytes numbers, int32_t less, float* out) {
  uint8_t byte[kLanes];
  __builtin_memcpy(byte, &numbers, sizeof byte);
  for (int p = 0; p < kParts; ++p) {
    const Bits number = minus(widen_bytes(byte + p * kPartLanes), fill_bits(less));
    store(out + p * kPartLanes, to_float(number) * d.part[p]);
  }
}

template <int i>
struct Index {
  static constexpr int value = i;
};

// body(Index<0>{}), ... body(Index<n - 1>{}): shifts by constants are much cheaper than by variables.
template <int n, typename Body>
[[gnu::always_inline]] inline void each_of(const Body& body) {
  if constexpr (n > 1) each_of<n - 1>(body);
  body(Index<n - 1>{});
}

// Bit `bit` of each byte, moved to `to`.
template <int bit, int to>
inline Line bit_of(Line line) {
  return (bit >= to ? line >> (bit >= to ? bit - to : 0) : line << (bit < to ? to - bit : 0)) & uint8_t{1 << to};
}

// Every encoding: inputs of a block, bytes of a row's block, inputs of a scale, zero point, largest code, whether it
// has biases; scales and biases of a block, [inputs / kScaled][16 rows]; and its codes, a part of a line at a time:
// put(line, codes), where line i is inputs [4 i, 4 i + 4).
using Scales = float (*)[kLanes];

// d (q - 16), q of 5 bits: d fp16, the fifth bits of 32 codes, their nibbles (0 to 15 low, 16 to 31 high).
struct Q5_0 {
  static constexpr int kInputs = 32, kBytes = 22, kScaled = 32, kZero = 16, kLargest = 31;
  static constexpr bool kBias = false, kByRow = false;
  static void scales(const uint8_t* block, Scales scale, Scales) { write(halves_at(block), scale[0]); }
  template <int p, typename Put>
  static void codes(const uint8_t* block, const Put& put) {
    after_scales<p>(field(block, 2), put);
  }
  template <int p, typename Put>
  static void after_scales(const uint8_t* fifth, const Put& put) {
    const Words bits = words_at<p>(fifth, 0);
    each_of<8>([&](auto step) __attribute__((always_inline)) {
      constexpr int s = decltype(step)::value;
      // Four bits in a row to bit 4 of four bytes: the product's other bits fall outside the mask.
      const Words high = ((((bits >> 4 * s) & 15) * 0x00204081u) & 0x01010101u) << 4;
      const Words low = words_at<p>(fifth, 1 + s % 4) >> (s < 4 ? 0 : 4) & 0x0f0f0f0fu;
      put(s, reinterpret_cast<Line>(low | high));
    });
  }
};

// d q + m: d and m fp16, then as Q5_0.
struct Q5_1 {
  static constexpr int kInputs = 32, kBytes = 24, kScaled = 32, kZero = 0, kLargest = 31;
  static constexpr bool kBias = true, kByRow = false;
  static void scales(const uint8_t* block, Scales scale, Scales bias) {
    write(halves_at(block), scale[0]);
    write(halves_at(field(block, 2)), bias[0]);
  }
  template <int p, typename Put>
  static void codes(const uint8_t* block, const Put& put) {
    Q5_0::after_scales<p>(field(block, 4), put);
  }
};

// Codes of 2 bits [64]: of 128, the first 32 lowest.
template <int p, typename Put>
inline void put_pairs(const uint8_t* pairs, const Put& put) {
  each_of<16>([&](auto index) __attribute__((always_inline)) {
    constexpr int i = decltype(index)::value, line = i / 8 * 32 + i % 8;
    const Line w = line_at<p>(pairs, i);
    put(line, w & 3);
    put(line + 8, w >> 2 & 3);
    put(line + 16, w >> 4 & 3);
    put(line + 24, w >> 6);
  });
}

// d s q - m t per 16: d and m fp16, scales s (low) and minima t (high nibble) [16], 2-bit codes [64].
struct Q2K {
  static constexpr int kInputs = 256, kBytes = 84, kScaled = 16, kZero = 0, kLargest = 3;
  static constexpr bool kBias = true, kByRow = false;
  static void scales(const uint8_t* block, Scales scale, Scales bias) {
    const Floats d = halves_at(block), m = negative(halves_at(field(block, 2)));
    for (int s = 0; s < 16; ++s) {
      const Bytes pair = bytes_at(field(block, 4), s);
      write_scaled(d, pair & 15, 0, scale[s]);
      write_scaled(m, pair >> 4, 0, bias[s]);
    }
  }
  template <int p, typename Put>
  static void codes(const uint8_t* block, const Put& put) {
    put_pairs<p>(field(block, 20), put);
  }
};

// d (s - 32) (q - 4) per 16: d fp16, 6-bit scales s [12], third bits [32] and low 2 bits [64] in turn while there are.
struct Q3K {
  static constexpr int kInputs = 256, kBytes = 110, kScaled = 16, kZero = 4, kLargest = 7;
  static constexpr bool kBias = false, kByRow = false;
  static void scales(const uint8_t* block, Scales scale, Scales) {
    const Floats d = halves_at(block);
    const uint8_t* packed = field(block, 2);
    each_of<16>([&](auto index) __attribute__((always_inline)) {
      constexpr int s = decltype(index)::value;
      const Bytes low = bytes_at(packed, s % 8) >> s / 8 * 4 & 15;
      const Bytes high = bytes_at(packed, 8 + s % 4) >> s / 4 * 2 & 3;
      write_scaled(d, low | high << 4, 32, scale[s]);
    });
  }
  template <int p, typename Put>
  static void codes(const uint8_t* block, const Put& put) {
    each_of<16>([&](auto index) __attribute__((always_inline)) {
      constexpr int i = decltype(index)::value, n = i / 8, line = n * 32 + i % 8;
      const Line third = line_at<p>(field(block, 14), 2 * (i % 8));
      const Line w = line_at<p>(field(block, 14), i < 8 ? 2 * i + 1 : 8 + i);
      put(line, (w & 3) | bit_of<4 * n, 2>(third));
      put(line + 8, (w >> 2 & 3) | bit_of<4 * n + 1, 2>(third));
      put(line + 16, (w >> 4 & 3) | bit_of<4 * n + 2, 2>(third));
      put(line + 24, w >> 6 | bit_of<4 * n + 3, 2>(third));
    });
  }
};

// d s q - m t per 32: d and m fp16, 6-bit s and t [12], nibbles [128]: of 64 codes the first 32 low.
struct Q4K {
  static constexpr int kInputs = 256, kBytes = 144, kScaled = 32, kZero = 0, kLargest = 15;
  static constexpr bool kBias = true, kByRow = false;
  static void scales(const uint8_t* block, Scales scale, Scales bias) {
    const Floats d = halves_at(block), m = negative(halves_at(field(block, 2)));
    const uint8_t* packed = field(block, 4);
    for (int s = 0; s < 4; ++s) {
      const Bytes a = bytes_at(packed, s), b = bytes_at(packed, s + 4), c = bytes_at(packed, s + 8);
      write_scaled(d, a & 63, 0, scale[s]);
      write_scaled(m, b & 63, 0, bias[s]);
      write_scaled(d, (c & 15) | a >> 6 << 4, 0, scale[s + 4]);
      write_scaled(m, c >> 4 | b >> 6 << 4, 0, bias[s + 4]);
    }
  }
  template <int p, typename Put>
  static void codes(const uint8_t* block, const Put& put) {
    each_of<32>([&](auto index) __attribute__((always_inline)) {
      constexpr int i = decltype(index)::value, line = i / 8 * 16 + i % 8;
      const Line w = line_at<p>(field(block, 16), i);
      put(line, w & 15);
      put(line + 8, w >> 4);
    });
  }
};

// As Q4_K, with fifth bits [32] in turn with the nibbles while there are: byte l has those of codes l, 32 + l, 64 + l,
// ... from bit 0 on.
struct Q5K {
  static constexpr int kInputs = 256, kBytes = 176, kScaled = 32, kZero = 0, kLargest = 31;
  static constexpr bool kBias = true, kByRow = false;
  static void scales(const uint8_t* block, Scales scale, Scales bias) { Q4K::scales(block, scale, bias); }
  template <int p, typename Put>
  static void codes(const uint8_t* block, const Put& put) {
    each_of<32>([&](auto index) __attribute__((always_inline)) {
      constexpr int i = decltype(index)::value, c = i / 8, line = c * 16 + i % 8;
      const Line fifth = line_at<p>(field(block, 16), 2 * (i % 8));
      const Line w = line_at<p>(field(block, 16), i < 8 ? 2 * i + 1 : 8 + i);
      put(line, (w & 15) | bit_of<2 * c, 4>(fifth));
      put(line + 8, w >> 4 | bit_of<2 * c + 1, 4>(fifth));
    });
  }
};

// d s (q - 32) per 16: d fp16, signed scales s [16], low 4 bits [128] and high 2 bits [64] in turn: two lines of
// nibbles and one of high bits.
struct Q6K {
  static constexpr int kInputs = 256, kBytes = 210, kScaled = 16, kZero = 32, kLargest = 63;
  static constexpr bool kBias = false, kByRow = false;
  static void scales(const uint8_t* block, Scales scale, Scales) {
    const Floats d = halves_at(block);
    for (int s = 0; s < 16; ++s) {
      write_scaled(d, bytes_at(field(block, 2), s) ^ 128, 128, scale[s]);  // signed bytes
    }
  }
  template <int p, typename Put>
  static void codes(const uint8_t* block, const Put& put) {
    each_of<16>([&](auto index) __attribute__((always_inline)) {
      constexpr int i = decltype(index)::value, line = i / 8 * 32 + i % 8;
      const uint8_t* lines = field(block, 18) + 3 * i * kLine;
      const Line a = line_at<p>(lines, 0), b = line_at<p>(lines, 1), top = line_at<p>(lines, 2);
      put(line, (a & 15) | (top & 3) << 4);
      put(line + 8, (b & 15) | (top & 12) << 2);
      put(line + 16, a >> 4 | (top & 48));
      put(line + 24, b >> 4 | (top >> 2 & 48));
    });
  }
};

// A code-book plus a zero point, so that bytes hold it without signs.
struct Shifted {
  uint8_t numbers[16];
};

constexpr Shifted shifted(const int8_t (&numbers)[16], int zero) {
  Shifted table{};
  for (int i = 0; i < 16; ++i) table.numbers[i] = static_cast<uint8_t>(numbers[i] + zero);
  return table;
}

// The entries of 32 nibbles a row, as Q4_0 has them, from `line` on.
template <int p, typename Put>
inline void put_entries(const Shifted& table, const uint8_t* nibbles, int line, const Put& put) {
  each_of<4>([&](auto step) __attribute__((always_inline)) {
    constexpr int s = decltype(step)::value;
    Line low, high;
    look_up(table.numbers, nibbles + s * kLine + p * kPartBytes, reinterpret_cast<uint8_t*>(&low),
            reinterpret_cast<uint8_t*>(&high));
    put(line + s, low);
    put(line + 4 + s, high);
  });
}

// d table[q]: d fp16, nibbles as Q4_0.
struct Iq4Nl {
  static constexpr int kInputs = 32, kBytes = 18, kScaled = 32, kZero = 128, kLargest = 255;
  static constexpr bool kBias = false, kByRow = false;
  static constexpr Shifted kTable = shifted(kIq4NlNumbers, kZero);
  static void scales(const uint8_t* block, Scales scale, Scales) { write(halves_at(block), scale[0]); }
  template <int p, typename Put>
  static void codes(const uint8_t* block, const Put& put) {
    put_entries<p>(kTable, field(block, 2), 0, put);
  }
};

// d (s - 32) table[q] per 32: d fp16, high 2 bits of s [2], low 4 bits [4], nibbles [128].
struct Iq4Xs {
  static constexpr int kInputs = 256, kBytes = 136, kScaled = 32, kZero = 128, kLargest = 255;
  static constexpr bool kBias = false, kByRow = false;
  static void scales(const uint8_t* block, Scales scale, Scales) {
    const Floats d = halves_at(block);
    each_of<8>([&](auto group) __attribute__((always_inline)) {
      constexpr int g = decltype(group)::value;
      const Bytes low = bytes_at(field(block, 4), g / 2) >> g % 2 * 4 & 15;
      const Bytes high = bytes_at(field(block, 2), g / 4) >> g % 4 * 2 & 3;
      write_scaled(d, low | high << 4, 32, scale[g]);
    });
  }
  template <int p, typename Put>
  static void codes(const uint8_t* block, const Put& put) {
    each_of<8>([&](auto group) __attribute__((always_inline)) {
      constexpr int g = decltype(group)::value;
      put_entries<p>(Iq4Nl::kTable, field(block, 8) + g * 4 * kLine, g * 8, put);
    });
  }
};

// 2^(e - 127) E2M1(q) (OCP Microscaling 1.0): the byte e, nibbles as Q4_0.
struct Mxfp4 {
  static constexpr int kInputs = 32, kBytes = 17, kScaled = 32, kZero = 12, kLargest = 24;
  static constexpr bool kBias = false, kByRow = false;
  static constexpr Shifted kTable = shifted(kE2m1Doubled, kZero);
  static void scales(const uint8_t* block, Scales scale, Scales) {
    for (int p = 0; p < kLanes; p += kPartLanes) {
      // 2 ** (byte - 128) as a product of two powers that are not subnormal, as the result may be.
      const Bits e = widen_bytes(block + p), half = halved(e);
      const auto power = [](Bits n) { return as_floats(to_exponent(plus(n, fill_bits(63)))); };
      store(scale[0] + p, power(half) * power(minus(e, half)));
    }
  }
  template <int p, typename Put>
  static void codes(const uint8_t* block, const Put& put) {
    put_entries<p>(kTable, field(block, 1), 0, put);
  }
};

// d (q - 1), q of 0, 1, 2: d fp16, five codes a byte [48], four a byte [4].
struct Tq1_0 {
  static constexpr int kInputs = 256, kBytes = 54, kScaled = 32, kZero = 1, kLargest = 2;
  static constexpr bool kBias = false, kByRow = false;
  static void scales(const uint8_t* block, Scales scale, Scales) {
    const Floats d = halves_at(block);
    for (int g = 0; g < 8; ++g) write(d, scale[g]);
  }
  template <int p, typename Put>
  static void codes(const uint8_t* block, const Put& put) {
    each_of<8>([&](auto j) { digits<5>(line_at<p>(field(block, 2), j.value), j.value, 8, put); });
    each_of<4>([&](auto j) { digits<5>(line_at<p>(field(block, 34), j.value), 40 + j.value, 4, put); });
    digits<4>(line_at<p>(field(block, 50), 0), 60, 1, put);
  }
  // Five digits in base 3, first the highest: a byte w is their number times 256 / 243, rounded up, so 3 w / 256 is the
  // first digit and 3 w modulo 256 has the others.
  template <int kDigits, typename Put>
  static void digits(Line w, int line, int stride, const Put& put) {
    each_of<kDigits>([&](auto n) {
      const Line twice = w + w, thrice = twice + w;
      const Line carry = (twice & w) | ((twice | w) & ~thrice);  // of the second sum, in bit 7
      put(line + n.value * stride, (w >> 7) + (carry >> 7));
      w = thrice;
    });
  }
};

// d (q - 1): d fp16, 2-bit codes [64].
struct Tq2_0 {
  static constexpr int kInputs = 256, kBytes = 66, kScaled = 32, kZero = 1, kLargest = 2;
  static constexpr bool kBias = false, kByRow = false;
  static void scales(const uint8_t* block, Scales scale, Scales) {
    const Floats d = halves_at(block);
    for (int g = 0; g < 8; ++g) write(d, scale[g]);
  }
  template <int p, typename Put>
  static void codes(const uint8_t* block, const Put& put) {
    put_pairs<p>(field(block, 2), put);
  }
};

// Fills the stage from its group `at` on (blocks of 32 share one).
template <typename E>
inline void unpack(const uint8_t* block, Stage& out, int at) {
  if constexpr (E::kByRow) {
    E::unpack(block, out);
  } else {
    E::scales(block, out.scale + at, out.bias + at);
    each_of<kParts>([&](auto part) {
      constexpr int p = decltype(part)::value;
      E::template codes<p>(block, [&](int line, const Line& codes) {
        __builtin_memcpy(out.codes[at * (kGroup / 4) + line] + p * kPartBytes, &codes, sizeof codes);
      });
    });
  }
}

}  // namespace
