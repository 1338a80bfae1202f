// Products of weights that are unpacked first, a block of a panel at a time, to a stage that stays in the first cache.
// Included inside a set's namespace, after gemm.inl.h and the encodings of unpack.inl.h and grids.inl.h.

namespace {

// The cheapest dot product of codes up to a largest.
template <int kLargest>
using ProductOf =
    std::conditional_t<kLargest <= 15, NibbleDot, std::conditional_t<kLargest <= 127, SmallByteDot, ByteDot>>;

inline void store_rows(const Gemm& g, int64_t panel, const float (*y)[kLanes]) {
  for (int r = 0; r < g.rows; ++r) {
    __builtin_memcpy(g.y + r * g.ldy + (panel - g.panel_begin) * kLanes, y[r], sizeof y[r]);
  }
}

// How far ahead packed bytes are fetched.
constexpr int64_t kDotPrefetchBytes = 4096;

// One row of activations times a panel's block from input k on: codes go into dot products at once, the same in the
// same order as through a stage.
template <typename E>
inline void add_dotted_block(const Gemm& g, const uint8_t* block, int64_t k, Part (&y)[kParts]) {
  using Product = ProductOf<E::kLargest>;
  constexpr int kBlock = E::kBytes * kLanes, kScales = E::kInputs / E::kScaled;
  constexpr int32_t kOffset = Product::kCentre - E::kZero;
  alignas(64) float scale[kScales][kLanes], bias[kScales][kLanes];
  E::scales(block, scale, bias);
  const int8_t* x = g.quantized.codes + k;
  const float* x_scale = g.quantized.scale + k / kGroup;
  const int32_t* x_sums = g.quantized.sum + k / kGroup * 2;
  const auto x_sum = [&](int s) {
    const int32_t* sums = x_sums + s * E::kScaled / kGroup * 2;
    return E::kScaled == kGroup ? sums[0] : s % 2 == 0 ? sums[1] : sums[0] - sums[1];
  };
  each_of<kParts>([&](auto part) {
    constexpr int p = decltype(part)::value;
    typename Product::Sums sums[kScales];
#pragma GCC unroll 16
    for (int s = 0; s < kScales; ++s) sums[s] = Product::start(kOffset * x_sum(s));
    E::template codes<p>(block, [&](int line, const Line& codes) __attribute__((always_inline)) {
      // A few at a time: as many as a block has lines, at once, wait for each other.
      if constexpr (p == 0) __builtin_prefetch(block + kDotPrefetchBytes + line * (kBlock * 4 / E::kInputs));
      auto& sum = sums[line * 4 / E::kScaled];
      sum = Product::step(sum, load_codes(reinterpret_cast<const uint8_t*>(&codes)), repeat_codes(x + line * 4));
    });
#pragma GCC unroll 16
    for (int s = 0; s < kScales; ++s) {
      const float group_scale = x_scale[s * E::kScaled / kGroup];
      const Part dot = to_float(Product::finish(sums[s], kOffset * x_sum(s)));
      y[p] = fused(dot, load(scale[s] + p * kPartLanes) * fill(group_scale), y[p]);
      if constexpr (E::kBias) {
        y[p] = fused(load(bias[s] + p * kPartLanes), fill(group_scale * static_cast<float>(x_sum(s))), y[p]);
      }
    }
  });
}

// Panels that are multiplied by one row in turn, block by block; results of more would not stay in registers.
constexpr int kDottedRuns = 2;

template <typename E>
void dotted_panels(const Gemm& g) {
  constexpr int kBlock = E::kBytes * kLanes;
  in_runs<kDottedRuns>(g.panel_begin, g.panel_end, [&](auto count, int64_t panel, int64_t apart) {
    constexpr int kRuns = decltype(count)::value;
    const uint8_t* block = g.w->codes + panel * g.w->panel_bytes;
    Part y[kRuns][kParts];
    for (auto& run : y) {
      for (Part& part : run) part = fill(0.0f);
    }
    for (int64_t k = 0; k < g.w->k; k += E::kInputs, block += kBlock) {
      for (int run = 0; run < kRuns; ++run) {
        add_dotted_block<E>(g, block + run * apart * g.w->panel_bytes, k, y[run]);
      }
    }
    for (int run = 0; run < kRuns; ++run) {
      for (int p = 0; p < kParts; ++p) {
        store(g.y + (panel + run * apart - g.panel_begin) * kLanes + p * kPartLanes, y[run][p]);
      }
    }
  });
}

template <typename E>
void block_panels(const Gemm& g) {
  if constexpr (!E::kByRow) {
    if (g.rows == 1) return dotted_panels<E>(g);
  }
  staged_blocks<E>(g);
}

// kTable4: the two bytes of a table's number are multiplied apart; |sum| <= 32 * 127 * 32768 < 2^31.
template <int kRows>
inline void add_table_group(const uint8_t (*high)[kLine], const uint8_t (*low)[kLine], const uint16_t* scale,
                            float table_scale, const QuantizedRows& q, int64_t group, int first_row,
                            float (*y)[kLanes]) {
  const int64_t tile = group * q.rows + first_row;
  const int32_t* x_sums = q.sum + tile + group * q.rows;
  for (int p = 0; p < kParts; ++p) {
    const Part w_scale = load_half(scale + p * kPartLanes) * fill(table_scale);
    for (int r = 0; r < kRows; ++r) {
      const int32_t x_sum = x_sums[r];
      const int32_t high_offset = (ByteDot::kCentre - 128) * x_sum, low_offset = ByteDot::kCentre * x_sum;
      auto high_sum = ByteDot::start(high_offset), low_sum = ByteDot::start(low_offset);
      for (int s = 0; s < kGroup / 4; ++s) {
        const auto x = repeat_codes(q.codes + (tile + r) * kGroup + s * 4);
        high_sum = ByteDot::step(high_sum, load_codes(high[s] + p * kPartLanes * 4), x);
        low_sum = ByteDot::step(low_sum, load_codes(low[s] + p * kPartLanes * 4), x);
      }
      const Bits sum = plus(times_256(ByteDot::finish(high_sum, high_offset)), ByteDot::finish(low_sum, low_offset));
      float* out = y[first_row + r] + p * kPartLanes;
      store(out, fused(to_float(sum), w_scale * fill(q.scale[tile + r]), load(out)));
    }
  }
}

void table_panels(const Gemm& g) {
  uint8_t high_table[16], low_table[16];
  for (int i = 0; i < 16; ++i) {
    high_table[i] = static_cast<uint8_t>((g.w->table[i] >> 8) + 128);
    low_table[i] = static_cast<uint8_t>(g.w->table[i] & 255);
  }
  const Cell& cell = g.w->cell;
  const int64_t groups = g.w->k / kGroup, shared = g.w->group / kGroup;
  for (int64_t panel = g.panel_begin; panel < g.panel_end; ++panel) {
    const uint8_t* scale = g.w->codes + panel * g.w->panel_bytes + cell.codes;
    float y[kMostRows][kLanes];
    __builtin_memset(y, 0, static_cast<std::size_t>(g.rows) * sizeof y[0]);
    for (int64_t group = 0; group < groups; ++group) {
      const uint8_t* codes = scale - cell.codes + group % shared * 4 * kLine;
      alignas(64) uint8_t high[8][kLine], low[8][kLine];
      for (int s = 0; s < 4; ++s) {
        for (int at = 0; at < kLine; at += kPartBytes) {
          look_up(high_table, codes + s * kLine + at, high[s] + at, high[4 + s] + at);
          look_up(low_table, codes + s * kLine + at, low[s] + at, low[4 + s] + at);
        }
      }
      for (int row = 0; row < g.rows; row += kTileRows) {
        const QuantizedRows tile = tile_at(g, row);
        in_powers<kIntegerRows>(tile.rows, [&](auto count, int first_row) {
          add_table_group<decltype(count)::value>(high, low, halves(scale), g.w->table_scale, tile, group, first_row,
                                                  y + row);
        });
      }
      if (group % shared == shared - 1) scale += cell.bytes;
    }
    store_rows(g, panel, y);
  }
}

// Whether several rows are multiplied from a stage, as NibbleRows allows it.
template <bool kNibbles>
inline bool stages(const Gemm& g) {
  return g.rows >= kStagedRows && !g.w->cell.zeros && (!kNibbles || g.w->zero <= 8);
}

template <typename Dot, bool kNibbles>
inline void integers(const Gemm& g) {
  if (!stages<kNibbles>(g)) return each_tile(g, gemm_integers<Dot, kNibbles>);
  return g.w->cell.bias ? staged_integers<kNibbles, true>(g) : staged_integers<kNibbles, false>(g);
}

}  // namespace

void gemm(const Gemm& g) {
  switch (g.w->encoding) {
    case Encoding::kInt4: return integers<NibbleDot, true>(g);
    case Encoding::kInt8: return integers<ByteDot, false>(g);
    case Encoding::kF16: return each_tile(g, float_panels<HalfBits>);
    case Encoding::kBF16: return each_tile(g, float_panels<BFloatBits>);
    case Encoding::kF32: return each_tile(g, float_panels<float>);
    case Encoding::kTable4: return table_panels(g);
#define CPUINFER_STAGED(encoding, Unpacked, name) \
  case Encoding::encoding: return block_panels<Unpacked>(g);
      CPUINFER_BLOCK_ENCODINGS(CPUINFER_STAGED)
#undef CPUINFER_STAGED
  }
}
