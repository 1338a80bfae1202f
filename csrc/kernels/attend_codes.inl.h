// Scores and weighted values of keys and values kept as codes, written once over the including file's dot products.
// Included inside that file's namespace, after gemm.inl.h.

namespace {

inline void store_scale(uint8_t* scales, int64_t at, float scale) {
  uint16_t half;
  to_half(&scale, 1, &half);
  __builtin_memcpy(scales + at * 2, &half, sizeof half);
}

constexpr int kGroupParts = kGroup / kPartLanes;

// A tile's rows of codes: of a group of queries, or of a page's shares.
template <int kRows>
struct CodeRows {
  int8_t codes[kRows][kGroup];
  float scale[kRows];
  int32_t sum[kRows];
};

inline int32_t largest_magnitude(const Part (&x)[kGroupParts]) {
  Bits magnitudes = fill_bits(0);
  for (const Part& part : x) magnitudes = larger(magnitudes, both(as_bits(part), fill_bits(0x7fffffff)));
  return largest_of(magnitudes);
}

// As quantize_group, of numbers in registers, and the sum only if asked for.
template <bool kSummed>
inline void quantize_shares(const Part (&x)[kGroupParts], int8_t* codes, float& scale, int32_t& sum) {
  const int32_t magnitude = largest_magnitude(x);
  float m;
  __builtin_memcpy(&m, &magnitude, sizeof m);
  const bool finite = magnitude < 0x7f800000;
  if (!finite || m < 1e-30f) {
    __builtin_memset(codes, 0, kGroup);
    scale = finite ? 0.0f : __builtin_nanf("");
    sum = 0;
    return;
  }
  scale = m / 127.0f;
  const Part inverse = fill(127.0f / m);
  Bits sums = fill_bits(0);
  for (int p = 0; p < kGroupParts; ++p) {
    const Bits code = to_nearest(x[p] * inverse);
    store_codes(codes + p * kPartLanes, code);
    if (kSummed) sums = plus(sums, code);
  }
  if (kSummed) sum = total_of(sums);
}

// A group of a key or value to codes of -8 .. 7.
inline void quantize_nibbles(const float* x, int8_t* codes, float& scale) {
  Part parts[kGroupParts];
  for (int p = 0; p < kGroupParts; ++p) parts[p] = load(x + p * kPartLanes);
  float low = 0.0f, high = 0.0f;
  for (int i = 0; i < kGroup; ++i) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
  }
  const float extreme = high > -low ? high : low;
  const bool finite = largest_magnitude(parts) < 0x7f800000;
  if (!finite || (extreme < 1e-30f && extreme > -1e-30f)) {
    __builtin_memset(codes, 0, kGroup);
    scale = finite ? 0.0f : __builtin_nanf("");
    return;
  }
  scale = extreme / -8.0f;
  const Part inverse = fill(-8.0f / extreme);
  for (int p = 0; p < kGroupParts; ++p) {
    store_codes(codes + p * kPartLanes, to_nearest(smaller(parts[p] * inverse, fill(7.0f))));
  }
}

template <typename Dot, bool kNibbles>
struct CodeCache {
  static constexpr int kRows = kParts > 1 ? kIntegerRows / 2 : kIntegerRows;  // times two sums, in registers
  using Sums = typename Dot::Sums;
  static constexpr int kZero = kNibbles ? 8 : 128;
  static constexpr int32_t kOffset = Dot::kCentre - kZero;
  static constexpr int64_t kGroupBytes = kPageTokens * kGroup / (kNibbles ? 2 : 1);  // of a page's keys or values

  static int64_t key_bytes(const Attend& a) {
    return round_up_to_groups(a.head_dim) / kGroup * (kGroupBytes + 2 * kPageTokens);
  }
  static int64_t value_bytes(const Attend& a) { return key_bytes(a); }

  template <int kRows>
  static CodeRows<kRows>* queries(const Attend& a) {
    return reinterpret_cast<CodeRows<kRows>*>(query_scratch(a));
  }

  // The queries in codes, each group's rows together.
  template <int kRows>
  static void read_queries(const Attend& a, int first_row) {
    const int64_t padded = round_up_to_groups(a.head_dim);
    for (int r = 0; r < kRows; ++r) {
      float* q = part_of(a, 0);  // free until the first segment
      copy_padded(a.q[first_row + r], a.head_dim, q);
      if (kNibbles) spread_head(q, a.head_dim);
      for (int64_t g = 0; g < padded / kGroup; ++g) {
        CodeRows<kRows>& rows = queries<kRows>(a)[g];
        int32_t sums[2];
        quantize_group(q + g * kGroup, rows.codes[r], rows.scale[r], sums, 1);
        rows.sum[r] = sums[0];
      }
    }
  }

  // Sums of two parts for each row.
  template <int kRows>
  static void start(const CodeRows<kRows>& x, typename Dot::Sums (&sums)[2][kRows]) {
    for (auto& column : sums) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) column[r] = Dot::start(kOffset * x.sum[r]);
    }
  }

  // scores[row][t ...] = q k of a page's positions.
  template <int kRows>
  static void score_page(const Attend& a, int first_row, const uint8_t* page, int64_t score, int64_t) {
    constexpr int kLine = kPageTokens * 4;  // bytes of four dimensions
    const int64_t groups = round_up_to_groups(a.head_dim) / kGroup;
    for (int p = 0; p < kParts; ++p) {
      const uint8_t* k = page + a.place.k + p * kPartLanes * 4;
      const uint16_t* scale = halves(page + a.place.k_scale) + p * kPartLanes;
      Part y[2][kRows];
      for (auto& column : y) {
        for (Part& part : column) part = fill(0.0f);
      }
      for (int64_t g = 0; g < groups; ++g, k += kGroupBytes, scale += kPageTokens) {
        const CodeRows<kRows>& x = queries<kRows>(a)[g];
        typename Dot::Sums sums[2][kRows];
        start<kRows>(x, sums);
#pragma GCC unroll 8
        for (int s = 0; s < (kNibbles ? 4 : 8); ++s) {
#pragma GCC unroll 2
          for (int c = 0; c < 2; ++c) {
            const auto w = load_codes(k + s * kLine + c * kLanes * 4);
            if constexpr (kNibbles) {
              const auto low = low_nibbles(w), high = high_nibbles(w);
#pragma GCC unroll 8
              for (int r = 0; r < kRows; ++r) {
                sums[c][r] = Dot::step(sums[c][r], low, repeat_codes(x.codes[r] + 4 * s));
                sums[c][r] = Dot::step(sums[c][r], high, repeat_codes(x.codes[r] + 16 + 4 * s));
              }
            } else {
#pragma GCC unroll 8
              for (int r = 0; r < kRows; ++r) {
                sums[c][r] = Dot::step(sums[c][r], w, repeat_codes(x.codes[r] + 4 * s));
              }
            }
          }
        }
#pragma GCC unroll 2
        for (int c = 0; c < 2; ++c) {
          const Part k_scale = load_half(scale + c * kLanes);
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) {
            const Bits dot = Dot::finish(sums[c][r], kOffset * x.sum[r]);
            y[c][r] = fused(to_float(dot), k_scale * fill(x.scale[r]), y[c][r]);
          }
        }
      }
      for (int c = 0; c < 2; ++c) {
        for (int r = 0; r < kRows; ++r) {
          store(row_scores(a, first_row + r) + score + c * kLanes + p * kPartLanes, fill(a.scale) * y[c][r]);
        }
      }
    }
  }

  // A page's shares, probabilities times a group's scales, in codes; 0 outside of its positions [begin, end).
  template <int kRows>
  static void read_shares(const Attend& a, int first_row, const uint16_t* scale, int64_t score, int64_t begin,
                          int64_t end, CodeRows<kRows>& x) {
    Part scales[kGroupParts];
    for (int p = 0; p < kGroupParts; ++p) scales[p] = load_half(scale + p * kPartLanes);
    const bool whole = begin == 0 && end == kPageTokens;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const float* weights = row_scores(a, first_row + r) + score;
      Part shares[kGroupParts];
      for (int p = 0; p < kGroupParts; ++p) shares[p] = load(weights + p * kPartLanes) * scales[p];
      if (!whole) clear_outside(shares, begin, end);
      quantize_shares<kNibbles>(shares, x.codes[r], x.scale[r], x.sum[r]);
    }
  }

  static void clear_outside(Part (&shares)[kGroupParts], int64_t begin, int64_t end) {
    float all[kPageTokens];
    for (int p = 0; p < kGroupParts; ++p) store(all + p * kPartLanes, shares[p]);
    for (int64_t t = 0; t < begin; ++t) all[t] = 0.0f;
    for (int64_t t = end; t < kPageTokens; ++t) all[t] = 0.0f;
    for (int p = 0; p < kGroupParts; ++p) shares[p] = load(all + p * kPartLanes);
  }

  // part[row] += p[row][t] v[t] over the page's positions [begin, end).
  template <int kRows>
  static void add_page(const Attend& a, int first_row, const uint8_t* page, int64_t score, int64_t begin, int64_t end) {
    const int64_t padded = round_up_to_groups(a.head_dim);
    const int64_t line = padded * 4 / (kNibbles ? 2 : 1);  // bytes of four positions
    for (int64_t g = 0; g < padded / kGroup; ++g) {
      CodeRows<kRows> x;
      read_shares<kRows>(a, first_row, halves(page + a.place.v_scale) + g * kPageTokens, score, begin, end, x);
      for (int p = 0; p < kParts; ++p) {
        const uint8_t* v = page + a.place.v + g * kGroup * 4 / (kNibbles ? 2 : 1) + p * kPartLanes * 4;
        Sums sums[2][kRows];
        for (auto& column : sums) {
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) column[r] = kNibbles ? Dot::start(kOffset * x.sum[r]) : fill_bits(0);
        }
#pragma GCC unroll 8
        for (int s = 0; s < kPageTokens / 4; ++s, v += line) {
          const auto first = load_codes(v);
          if constexpr (kNibbles) {
            add_step<kRows>(low_nibbles(first), x, s, sums[0]);
            add_step<kRows>(high_nibbles(first), x, s, sums[1]);
          } else {
            add_step<kRows>(first, x, s, sums[0]);
            add_step<kRows>(load_codes(v + kLanes * 4), x, s, sums[1]);
          }
        }
#pragma GCC unroll 2
        for (int c = 0; c < 2; ++c) {
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) {
            float* at = part_of(a, first_row + r) + g * kGroup + c * kLanes + p * kPartLanes;
            const Bits dot = kNibbles ? Dot::finish(sums[c][r], kOffset * x.sum[r]) : sums[c][r];
            store(at, fused(to_float(dot), fill(x.scale[r]), load(at)));
          }
        }
      }
    }
  }

  template <int kRows, typename Codes>
  static void add_step(const Codes& values, const CodeRows<kRows>& x, int s, Sums (&sums)[kRows]) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const auto shares = repeat_codes(x.codes[r] + 4 * s);
      sums[r] = kNibbles ? Dot::step(sums[r], values, shares) : add_shares(sums[r], values, shares);
    }
  }

  static void keep(const Keep& k) {
    copy_padded(k.k, k.head_dim, k.scratch);
    if (kNibbles) spread_head(k.scratch, k.head_dim);
    keep_vector<true>(k, k.scratch);
    copy_padded(k.v, k.head_dim, k.scratch);
    keep_vector<false>(k, k.scratch);
  }

  template <bool kKey>
  static void keep_vector(const Keep& k, const float* x) {
    const int64_t padded = round_up_to_groups(k.head_dim);
    uint8_t* scales = k.page + (kKey ? k.place.k_scale : k.place.v_scale);
    for (int64_t g = 0; g < padded / kGroup; ++g) {
      int8_t codes[kGroup];
      float scale;
      if constexpr (kNibbles) {
        quantize_nibbles(x + g * kGroup, codes, scale);
      } else {
        int32_t sums[2];
        quantize_group(x + g * kGroup, codes, scale, sums, 1);
      }
      store_scale(scales, g * kPageTokens + k.slot, scale);
      if (kKey)
        keep_key_codes(k.page + k.place.k + g * kGroupBytes + k.slot * 4, codes);
      else
        keep_value_codes(k.page + k.place.v, padded, g, k.slot, codes);
    }
  }

  static uint8_t code_of(int8_t code) { return static_cast<uint8_t>(code + kZero); }
  static uint8_t pair_of(int8_t low, int8_t high) { return static_cast<uint8_t>(code_of(low) | code_of(high) << 4); }

  static void keep_key_codes(uint8_t* out, const int8_t (&codes)[kGroup]) {
    for (int s = 0; s < (kNibbles ? 4 : 8); ++s, out += kPageTokens * 4) {
      for (int j = 0; j < 4; ++j) {
        out[j] = kNibbles ? pair_of(codes[4 * s + j], codes[16 + 4 * s + j]) : code_of(codes[4 * s + j]);
      }
    }
  }

  static void keep_value_codes(uint8_t* v, int64_t padded, int64_t group, int64_t slot, const int8_t (&codes)[kGroup]) {
    constexpr int kStored = kNibbles ? kGroup / 2 : kGroup;  // bytes a position has of a group
    uint8_t* out = v + slot / 4 * (padded / kGroup * kStored * 4) + group * kStored * 4 + slot % 4;
    for (int d = 0; d < kStored; ++d) {
      out[d * 4] = kNibbles ? pair_of(codes[d], codes[16 + d]) : static_cast<uint8_t>(codes[d]);
    }
  }
};

using ByteCache = CodeCache<ByteDot, false>;
using NibbleCache = CodeCache<NibbleDot, true>;

}  // namespace
