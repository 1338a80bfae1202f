// How each block encoding is unpacked to a stage: exact integers and products, so the same bits whoever compiles it.
// Included inside a namespace, after a vec_*.h.

namespace {

// Part of a panel's block: `offset` bytes into each row's block, so 16 times that into the panel's.
inline const uint8_t* field(const uint8_t* block, int offset) { return block + offset * kLanes; }

template <typename Vector>
inline Vector read(const uint8_t* p) {
  Vector vector;
  __builtin_memcpy(&vector, p, sizeof vector);
  return vector;
}
inline Line line_at(const uint8_t* lines, int i) { return read<Line>(lines + i * kLine); }
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

template <typename Vector, typename Element>
inline void write(Vector vector, Element* out) {
  __builtin_memcpy(out, &vector, sizeof vector);
}

template <int i>
struct Index {
  static constexpr int value = i;
};

// body(Index<0>{}), ... body(Index<n - 1>{}): shifts by constants are much cheaper than by variables.
template <int n, typename Body>
inline void each_of(const Body& body) {
  if constexpr (n > 1) each_of<n - 1>(body);
  body(Index<n - 1>{});
}

// Bit `bit` of each byte, moved to `to`.
template <int bit, int to>
inline Line bit_of(Line line) {
  return (bit >= to ? line >> (bit >= to ? bit - to : 0) : line << (bit < to ? to - bit : 0)) & uint8_t{1 << to};
}

// Every encoding: inputs of a block, bytes of a row's block, inputs of a scale, zero point, whether it has biases,
// whether codes exceed 127; unpack fills the stage from its group at `at` on (blocks of 32 share one).
// d (q - 16), q of 5 bits: d fp16, the fifth bits of 32 codes, their nibbles (0 to 15 low, 16 to 31 high).
struct Q5_0 {
  static constexpr int kInputs = 32, kBytes = 22, kScaled = 32, kZero = 16;
  static constexpr bool kBias = false, kWide = false;
  static void unpack(const uint8_t* block, Stage& out, int at) {
    write(halves_at(block), out.scale[at]);
    codes(field(block, 2), out.codes + at * 8);
  }
  static void codes(const uint8_t* fifth, uint8_t (*out)[kLine]) {
    const Words bits = read<Words>(fifth);
    each_of<8>([&](auto step) {
      constexpr int s = decltype(step)::value;
      // Four bits in a row to bit 4 of four bytes: the product's other bits fall outside the mask.
      const Words high = ((((bits >> 4 * s) & 15) * 0x00204081u) & 0x01010101u) << 4;
      const Words low = read<Words>(fifth + (1 + s % 4) * kLine) >> (s < 4 ? 0 : 4) & 0x0f0f0f0fu;
      write(low | high, out[s]);
    });
  }
};

// d q + m: d and m fp16, then as Q5_0.
struct Q5_1 {
  static constexpr int kInputs = 32, kBytes = 24, kScaled = 32, kZero = 0;
  static constexpr bool kBias = true, kWide = false;
  static void unpack(const uint8_t* block, Stage& out, int at) {
    write(halves_at(block), out.scale[at]);
    write(halves_at(field(block, 2)), out.bias[at]);
    Q5_0::codes(field(block, 4), out.codes + at * 8);
  }
};

// d s q - m t per 16: scales s (low) and minima t (high nibble) [16], 2-bit codes [64], d and m fp16.
struct Q2K {
  static constexpr int kInputs = 256, kBytes = 84, kScaled = 16, kZero = 0;
  static constexpr bool kBias = true, kWide = false;
  static void unpack(const uint8_t* block, Stage& out, int) {
    const Floats d = halves_at(field(block, 80)), m = negative(halves_at(field(block, 82)));
    for (int s = 0; s < 16; ++s) {
      const Bytes pair = bytes_at(block, s);
      write_scaled(d, pair & 15, 0, out.scale[s]);
      write_scaled(m, pair >> 4, 0, out.bias[s]);
    }
    for (int n = 0; n < 2; ++n) {
      for (int j = 0; j < 8; ++j) {
        const Line w = line_at(field(block, 16), n * 8 + j);
        uint8_t(*line)[kLine] = out.codes + n * 32 + j;
        write(w & 3, line[0]);
        write(w >> 2 & 3, line[8]);
        write(w >> 4 & 3, line[16]);
        write(w >> 6, line[24]);
      }
    }
  }
};

// d (s - 32) (q - 4) per 16: third bits [32], low 2 bits [64], 6-bit scales s [12], d fp16.
struct Q3K {
  static constexpr int kInputs = 256, kBytes = 110, kScaled = 16, kZero = 4;
  static constexpr bool kBias = false, kWide = false;
  static void unpack(const uint8_t* block, Stage& out, int) {
    const Floats d = halves_at(field(block, 108));
    const uint8_t* packed = field(block, 96);
    each_of<16>([&](auto scale) {
      constexpr int s = decltype(scale)::value;
      const Bytes low = bytes_at(packed, s % 8) >> s / 8 * 4 & 15;
      const Bytes high = bytes_at(packed, 8 + s % 4) >> s / 4 * 2 & 3;
      write_scaled(d, low | high << 4, 32, out.scale[s]);
    });
    each_of<2>([&](auto half) {
      constexpr int n = decltype(half)::value;
      for (int j = 0; j < 8; ++j) {
        const Line third = line_at(block, j), w = line_at(field(block, 32), n * 8 + j);
        uint8_t(*line)[kLine] = out.codes + n * 32 + j;
        write((w & 3) | bit_of<4 * n, 2>(third), line[0]);
        write((w >> 2 & 3) | bit_of<4 * n + 1, 2>(third), line[8]);
        write((w >> 4 & 3) | bit_of<4 * n + 2, 2>(third), line[16]);
        write(w >> 6 | bit_of<4 * n + 3, 2>(third), line[24]);
      }
    });
  }
};

// d s q - m t per 32: d and m fp16, 6-bit s and t [12], nibbles [128]: of 64 codes the first 32 low.
struct Q4K {
  static constexpr int kInputs = 256, kBytes = 144, kScaled = 32, kZero = 0;
  static constexpr bool kBias = true, kWide = false;
  static void unpack(const uint8_t* block, Stage& out, int) {
    scales(block, out);
    for (int c = 0; c < 4; ++c) {
      for (int j = 0; j < 8; ++j) {
        const Line w = line_at(field(block, 16), c * 8 + j);
        write(w & 15, out.codes[c * 16 + j]);
        write(w >> 4, out.codes[c * 16 + 8 + j]);
      }
    }
  }
  // Twelve bytes of eight scales and eight minima of 6 bits; Q5_K has them too.
  static void scales(const uint8_t* block, Stage& out) {
    const Floats d = halves_at(block), m = negative(halves_at(field(block, 2)));
    const uint8_t* packed = field(block, 4);
    for (int s = 0; s < 4; ++s) {
      const Bytes a = bytes_at(packed, s), b = bytes_at(packed, s + 4), c = bytes_at(packed, s + 8);
      write_scaled(d, a & 63, 0, out.scale[s]);
      write_scaled(m, b & 63, 0, out.bias[s]);
      write_scaled(d, (c & 15) | a >> 6 << 4, 0, out.scale[s + 4]);
      write_scaled(m, c >> 4 | b >> 6 << 4, 0, out.bias[s + 4]);
    }
  }
};

// As Q4_K, with fifth bits [32] before the nibbles: byte l has those of codes l, 32 + l, 64 + l, ... from bit 0 on.
struct Q5K {
  static constexpr int kInputs = 256, kBytes = 176, kScaled = 32, kZero = 0;
  static constexpr bool kBias = true, kWide = false;
  static void unpack(const uint8_t* block, Stage& out, int) {
    Q4K::scales(block, out);
    each_of<4>([&](auto chunk) {
      constexpr int c = decltype(chunk)::value;
      for (int j = 0; j < 8; ++j) {
        const Line fifth = line_at(field(block, 16), j), w = line_at(field(block, 48), c * 8 + j);
        write((w & 15) | bit_of<2 * c, 4>(fifth), out.codes[c * 16 + j]);
        write(w >> 4 | bit_of<2 * c + 1, 4>(fifth), out.codes[c * 16 + 8 + j]);
      }
    });
  }
};

// d s (q - 32) per 16: low 4 bits [128], high 2 bits [64], signed scales s [16], d fp16.
struct Q6K {
  static constexpr int kInputs = 256, kBytes = 210, kScaled = 16, kZero = 32;
  static constexpr bool kBias = false, kWide = false;
  static void unpack(const uint8_t* block, Stage& out, int) {
    const Floats d = halves_at(field(block, 208));
    for (int s = 0; s < 16; ++s) {
      write_scaled(d, bytes_at(field(block, 192), s) ^ 128, 128, out.scale[s]);  // signed bytes
    }
    for (int n = 0; n < 2; ++n) {
      for (int j = 0; j < 8; ++j) {
        const Line a = line_at(block, n * 16 + j), b = line_at(block, n * 16 + 8 + j);
        const Line top = line_at(field(block, 128), n * 8 + j);
        uint8_t(*line)[kLine] = out.codes + n * 32 + j;
        write((a & 15) | (top & 3) << 4, line[0]);
        write((b & 15) | (top & 12) << 2, line[8]);
        write(a >> 4 | (top & 48), line[16]);
        write(b >> 4 | (top >> 2 & 48), line[24]);
      }
    }
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

// d table[q]: d fp16, nibbles as Q4_0.
struct Iq4Nl {
  static constexpr int kInputs = 32, kBytes = 18, kScaled = 32, kZero = 128;
  static constexpr bool kBias = false, kWide = true;
  static void unpack(const uint8_t* block, Stage& out, int at) {
    write(halves_at(block), out.scale[at]);
    codes(field(block, 2), out.codes + at * 8);
  }
  static void codes(const uint8_t* nibbles, uint8_t (*out)[kLine]) {
    constexpr Shifted kTable = shifted(kIq4NlNumbers, kZero);
    for (int s = 0; s < 4; ++s) look_up(kTable.numbers, nibbles + s * kLine, out[s], out[4 + s]);
  }
};

// d (s - 32) table[q] per 32: d fp16, high 2 bits of s [2], low 4 bits [4], nibbles [128].
struct Iq4Xs {
  static constexpr int kInputs = 256, kBytes = 136, kScaled = 32, kZero = 128;
  static constexpr bool kBias = false, kWide = true;
  static void unpack(const uint8_t* block, Stage& out, int) {
    const Floats d = halves_at(block);
    each_of<8>([&](auto group) {
      constexpr int g = decltype(group)::value;
      const Bytes low = bytes_at(field(block, 4), g / 2) >> g % 2 * 4 & 15;
      const Bytes high = bytes_at(field(block, 2), g / 4) >> g % 4 * 2 & 3;
      write_scaled(d, low | high << 4, 32, out.scale[g]);
      Iq4Nl::codes(field(block, 8) + g * 4 * kLine, out.codes + g * 8);
    });
  }
};

// 2^(e - 127) E2M1(q) (OCP Microscaling 1.0): the byte e, nibbles as Q4_0.
struct Mxfp4 {
  static constexpr int kInputs = 32, kBytes = 17, kScaled = 32, kZero = 12;
  static constexpr bool kBias = false, kWide = false;
  static void unpack(const uint8_t* block, Stage& out, int at) {
    for (int p = 0; p < kLanes; p += kPartLanes) {
      // 2 ** (byte - 128) as a product of two powers that are not subnormal, as the result may be.
      const Bits e = widen_bytes(block + p), half = halved(e);
      const auto power = [](Bits n) { return as_floats(to_exponent(plus(n, fill_bits(63)))); };
      store(out.scale[at] + p, power(half) * power(minus(e, half)));
    }
    constexpr Shifted kTable = shifted(kE2m1Doubled, kZero);
    for (int s = 0; s < 4; ++s) {
      look_up(kTable.numbers, field(block, 1) + s * kLine, out.codes[at * 8 + s], out.codes[at * 8 + 4 + s]);
    }
  }
};

// d (q - 1), q of 0, 1, 2: five codes a byte [48], four a byte [4], d fp16.
struct Tq1_0 {
  static constexpr int kInputs = 256, kBytes = 54, kScaled = 32, kZero = 1;
  static constexpr bool kBias = false, kWide = false;
  static void unpack(const uint8_t* block, Stage& out, int) {
    const Floats d = halves_at(field(block, 52));
    for (int g = 0; g < 8; ++g) write(d, out.scale[g]);
    for (int j = 0; j < 8; ++j) digits<5>(line_at(block, j), out.codes + j, 8);
    for (int j = 0; j < 4; ++j) digits<5>(line_at(field(block, 32), j), out.codes + 40 + j, 4);
    digits<4>(line_at(field(block, 48), 0), out.codes + 60, 1);
  }
  // Five digits in base 3, first the highest: a byte w is their number times 256 / 243, rounded up, so 3 w / 256 is the
  // first digit and 3 w modulo 256 has the others.
  template <int kDigits>
  static void digits(Line w, uint8_t (*out)[kLine], int stride) {
    for (int n = 0; n < kDigits; ++n) {
      const Line twice = w + w, thrice = twice + w;
      const Line carry = (twice & w) | ((twice | w) & ~thrice);  // of the second sum, in bit 7
      write((w >> 7) + (carry >> 7), out[n * stride]);
      w = thrice;
    }
  }
};

// d (q - 1): 2-bit codes [64], d fp16.
struct Tq2_0 {
  static constexpr int kInputs = 256, kBytes = 66, kScaled = 32, kZero = 1;
  static constexpr bool kBias = false, kWide = false;
  static void unpack(const uint8_t* block, Stage& out, int) {
    const Floats d = halves_at(field(block, 64));
    for (int g = 0; g < 8; ++g) write(d, out.scale[g]);
    for (int n = 0; n < 2; ++n) {
      for (int j = 0; j < 8; ++j) {
        const Line w = line_at(block, n * 8 + j);
        uint8_t(*line)[kLine] = out.codes + n * 32 + j;
        write(w & 3, line[0]);
        write(w >> 2 & 3, line[8]);
        write(w >> 4 & 3, line[16]);
        write(w >> 6, line[24]);
      }
    }
  }
};

}  // namespace
