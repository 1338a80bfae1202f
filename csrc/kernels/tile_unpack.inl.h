// Weights as tile units take them: 32 inputs of a panel become 1 KiB of bf16, [16 pairs of inputs][16 rows][2].
// Included inside the set's namespace, after unpack.inl.h and grids.inl.h.

namespace {

constexpr int kTileHalves = kGroup * kLanes;  // bf16 numbers of one tile
using Halves = __m512i;                       // 32 of them

// Rounded to nearest even; (first[l], second[l]) become neighbours.
inline Halves paired(Part first, Part second) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first)));
}

// Rounded likewise; first, then second.
inline Halves in_order(Part first, Part second) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
}

inline void store_halves(uint16_t* out, Halves a) { _mm512_storeu_si512(out, a); }

// Four numbers a row, of inputs 4 i .. 4 i + 3, into their two pairs.
inline void store_four(uint16_t* out, Part a, Part b, Part c, Part d) {
  store_halves(out, paired(a, b));
  store_halves(out + 2 * kLanes, paired(c, d));
}

// A line of codes, 16 rows of four.
inline void store_scaled(uint16_t* out, Bits line, Part scale, Part offset) {
  const auto value = [&](Bits code) { return fused(to_float(code), scale, offset); };
  const Bits byte = fill_bits(255);
  store_four(out, value(both(line, byte)), value(both(_mm512_srli_epi32(line, 8), byte)),
             value(both(_mm512_srli_epi32(line, 16), byte)), value(_mm512_srli_epi32(line, 24)));
}

// The table's numbers of nibbles at bits `at`, at + 8, at + 16 and at + 24 of each row.
template <int at>
inline void store_looked_up(uint16_t* out, Bits line, Part table, Part scale, Part offset) {
  const auto value = [&](Bits code) { return fused(_mm512_permutexvar_ps(code, table), scale, offset); };
  store_four(out, value(_mm512_srli_epi32(line, at)), value(_mm512_srli_epi32(line, at + 8)),
             value(_mm512_srli_epi32(line, at + 16)), value(_mm512_srli_epi32(line, at + 24)));
}

// kInt4, kInt8 and kTable4.
template <bool kNibbles>
void unpack_integer_tiles(const Weights& w, int64_t panel, int64_t begin, int64_t end, uint16_t* out) {
  constexpr int64_t kGroupBytes = kLanes * kGroup / (kNibbles ? 2 : 1);
  const Cell& cell = w.cell;
  const bool looked_up = w.encoding == Encoding::kTable4;
  alignas(64) float numbers[kLanes];
  for (int i = 0; i < kLanes; ++i) numbers[i] = looked_up ? w.table_scale * w.table[i] : static_cast<float>(i);
  const Part table = load(numbers);
  const int64_t shared = w.group / kGroup;
  for (int64_t group = begin / kGroup; group < end / kGroup; ++group, out += kTileHalves) {
    const uint8_t* at = w.codes + panel * w.panel_bytes + group / shared * cell.bytes;
    const uint8_t* codes = at + group % shared * kGroupBytes;
    const Part scale = load_half(halves(at + cell.codes));
    Part offset = fill(0.0f);
    if (!looked_up) {
      const Bits zero = cell.zeros ? widen_bytes(at + cell.zeros) : fill_bits(w.zero);
      offset = scale * to_float(minus(fill_bits(0), zero));
      if (cell.bias) offset = offset + load_half(halves(at + cell.bias));
    }
    for (int line = 0; line < kGroupBytes; line += 64) __builtin_prefetch(codes + kTilePrefetchBytes + line);
    for (int s = 0; s < kGroupBytes / kLine; ++s) {
      const Bits line = load_codes(codes + s * kLine);
      if constexpr (kNibbles) {
        store_looked_up<0>(out + s * 4 * kLanes, line, table, scale, offset);
        store_looked_up<4>(out + (s + 4) * 4 * kLanes, line, table, scale, offset);
      } else {
        store_scaled(out + s * 4 * kLanes, line, scale, offset);
      }
    }
  }
}

template <typename E>
void unpack_block_tiles(const Weights& w, int64_t panel, int64_t begin, int64_t end, uint16_t* out) {
  constexpr int kBlock = E::kBytes * kLanes, kLines = E::kScaled / 4;
  Stage stage;
  const uint8_t* block = w.codes + panel * w.panel_bytes + begin / E::kInputs * kBlock;
  for (int64_t k = begin; k < end; k += E::kInputs, block += kBlock) {
    for (int line = 0; line < kBlock; line += 64) __builtin_prefetch(block + kTilePrefetchBytes + line);
    unpack<E>(block, stage, 0);
    for (int s = 0; s < E::kInputs / E::kScaled; ++s) {
      const Part scale = load(stage.scale[s]);
      Part offset = scale * fill(static_cast<float>(-E::kZero));
      if constexpr (E::kBias) offset = offset + load(stage.bias[s]);
#pragma GCC unroll 8
      for (int line = 0; line < kLines; ++line, out += 4 * kLanes) {
        store_scaled(out, load_codes(stage.codes[s * kLines + line]), scale, offset);
      }
    }
  }
}

// kF16 and kBF16, by how 16 of them are loaded.
template <Part (*load_sixteen)(const uint16_t*)>
void unpack_float_tiles(const Weights& w, int64_t panel, int64_t begin, int64_t end, uint16_t* out) {
  const uint16_t* at = halves(w.codes + panel * w.panel_bytes);
  for (int64_t k = begin; k < end; k += 2, out += 2 * kLanes) {
    const Part first = k < w.k ? load_sixteen(at + k * kLanes) : fill(0.0f);
    const Part second = k + 1 < w.k ? load_sixteen(at + (k + 1) * kLanes) : fill(0.0f);
    store_halves(out, paired(first, second));
  }
}

// Inputs [begin, end) of a panel, both multiples of 256 or the end of the row rounded up to 32.
void unpack_tiles(const Weights& w, int64_t panel, int64_t begin, int64_t end, uint16_t* out) {
  switch (w.encoding) {
    case Encoding::kInt4:
    case Encoding::kTable4: return unpack_integer_tiles<true>(w, panel, begin, end, out);
    case Encoding::kInt8: return unpack_integer_tiles<false>(w, panel, begin, end, out);
    case Encoding::kF16: return unpack_float_tiles<load_half>(w, panel, begin, end, out);
    case Encoding::kBF16: return unpack_float_tiles<load_bfloat>(w, panel, begin, end, out);
    case Encoding::kF32: return;  // never on tile units: fits_tiles()
#define CPUINFER_TILES(encoding, Unpacked, name) \
  case Encoding::encoding: return unpack_block_tiles<Unpacked>(w, panel, begin, end, out);
      CPUINFER_BLOCK_ENCODINGS(CPUINFER_TILES)
#undef CPUINFER_TILES
  }
}

}  // namespace
