// Pages of keys and values as tile units take them, in bf16: keys as [2 halves of the page][groups of 32 dimensions]
// tiles [16 pairs of dimensions][16 positions][2], values as a tile of each 16 dimensions, [16 pairs of
// positions][16][2]. Included inside the set's namespace, after tile_unpack.inl.h and spread.inl.h.

namespace {

constexpr int64_t kPositionLines = kTilePositions / kPageTokens;  // pages of kTilePositions
constexpr int64_t kValueColumn = kPositionLines * kTileHalves;    // from 16 dimensions' tile to the next ones'

// Keys fp16 [head_dim][32 positions].
inline void unpack_half_keys(const uint16_t* k, int64_t head_dim, uint16_t* tiles) {
  for (int half = 0; half < 2; ++half) {
    for (int64_t d = 0; d < round_up_to_groups(head_dim); d += 2, tiles += 2 * kLanes) {
      const uint16_t* at = k + d * kPageTokens + half * kLanes;
      const Part even = d < head_dim ? load_half(at) : fill(0.0f);
      const Part odd = d + 1 < head_dim ? load_half(at + kPageTokens) : fill(0.0f);
      store_halves(tiles, paired(even, odd));
    }
  }
}

// Values fp16 [32 positions][dims].
inline void unpack_half_values(const uint16_t* v, int64_t dims, uint16_t* tiles) {
  for (int64_t d = 0; d < dims; d += kLanes, tiles += kValueColumn) {
    for (int64_t t = 0; t < kPageTokens; t += 2) {
      store_halves(tiles + t * kLanes, paired(load_half(v + t * dims + d), load_half(v + (t + 1) * dims + d)));
    }
  }
}

// 0, 1, ... 15 less the zero point of nibbles.
inline Part nibble_numbers() { return _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7); }

// Keys in codes, [groups][steps][32 positions][4], with scales [groups][32 positions].
template <bool kNibbles>
inline void unpack_code_keys(const uint8_t* k, const uint16_t* scales, int64_t groups, uint16_t* tiles) {
  constexpr int64_t kStep = kPageTokens * 4, kSteps = kNibbles ? 4 : 8;
  for (int half = 0; half < 2; ++half) {
    for (int64_t g = 0; g < groups; ++g, tiles += kTileHalves) {
      const Part scale = load_half(scales + g * kPageTokens + half * kLanes);
      for (int64_t s = 0; s < kSteps; ++s) {
        const Bits line = load_codes(k + (g * kSteps + s) * kStep + half * kLine);
        if constexpr (kNibbles) {
          store_looked_up<0>(tiles + s * 4 * kLanes, line, nibble_numbers(), scale, fill(0.0f));
          store_looked_up<4>(tiles + (s + 4) * 4 * kLanes, line, nibble_numbers(), scale, fill(0.0f));
        } else {
          store_scaled(tiles + s * 4 * kLanes, line, scale, scale * fill(-128.0f));
        }
      }
    }
  }
}

// Values in codes, [8 fours of positions][dimensions][4]: signed bytes, or nibbles of the two halves of a group; scales
// [groups][32].
template <bool kNibbles>
inline void unpack_code_values(const uint8_t* v, const uint16_t* scales, int64_t head_dim, uint16_t* tiles) {
  const int64_t padded = round_up_to_groups(head_dim), row = padded * (kNibbles ? 2 : 4);  // bytes of four positions
  alignas(64) float scale[kPageTokens];
  for (int64_t d = 0; d < head_dim; d += kLanes, tiles += kValueColumn) {
    for (int half = 0; half < 2; ++half) {
      store(scale + half * kLanes, load_half(scales + d / kGroup * kPageTokens + half * kLanes));
    }
    const int32_t shift = kNibbles && d % kGroup >= kLanes ? 4 : 0;
    const int64_t at = kNibbles ? d / kGroup * kLine : d * 4;
    for (int64_t t = 0; t < kPageTokens; t += 4) {
      const Bits line = load_codes(v + t / 4 * row + at);
      const auto value = [&](int i) {
        const Bits code = _mm512_srlv_epi32(line, fill_bits(8 * i + shift));
        const Part number = kNibbles ? _mm512_permutexvar_ps(code, nibble_numbers())
                                     : to_float(_mm512_srai_epi32(_mm512_slli_epi32(code, 24), 24));
        return number * fill(scale[t + i]);
      };
      store_four(tiles + t * kLanes, value(0), value(1), value(2), value(3));
    }
  }
}

inline void unpack_page(const TileAttend& a, const uint8_t* page, uint16_t* keys, uint16_t* values) {
  const int64_t groups = round_up_to_groups(a.head_dim) / kGroup;
  const uint8_t *k = page + a.place.k, *v = page + a.place.v;
  const uint16_t *k_scale = halves(page + a.place.k_scale), *v_scale = halves(page + a.place.v_scale);
  switch (a.cache) {
    case CacheType::kF16:
      unpack_half_keys(halves(k), a.head_dim, keys);
      return unpack_half_values(halves(v), round_up_to_lanes(a.head_dim), values);
    case CacheType::kInt8:
      unpack_code_keys<false>(k, k_scale, groups, keys);
      return unpack_code_values<false>(v, v_scale, a.head_dim, values);
    case CacheType::kInt4:
      unpack_code_keys<true>(k, k_scale, groups, keys);
      return unpack_code_values<true>(v, v_scale, a.head_dim, values);
  }
}

}  // namespace
