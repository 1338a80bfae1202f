// Products of weights that are unpacked first, a block of a panel at a time, to a stage that stays in the first cache.
// Included inside a set's namespace, after gemm.inl.h and the encodings of unpack.inl.h and grids.inl.h.

namespace {

// Calls body(Count<rows>{}, row) for blocks of 8, 4, 2 and 1 rows.
template <typename Body>
inline void in_powers(int rows, const Body& body) {
  int row = 0;
  if constexpr (kIntegerRows == 8) {
    for (; rows - row >= 8; row += 8) body(Count<8>{}, row);
    if (rows - row >= 4) body(Count<4>{}, row), row += 4;
    if (rows - row >= 2) body(Count<2>{}, row), row += 2;
  }
  for (; row < rows; ++row) body(Count<1>{}, row);
}

// The cheapest dot product of codes up to a largest.
template <int kLargest>
using ProductOf =
    std::conditional_t<kLargest <= 15, NibbleDot, std::conditional_t<kLargest <= 127, SmallByteDot, ByteDot>>;

// What the products of a stage depend on, of an encoding.
template <int kScaledInputs, bool kHasBias, typename Dot>
struct StageShape {
  using Product = Dot;
  static constexpr int kScales = kGroup / kScaledInputs;  // of a group of 32
  static constexpr int kSteps = kScaledInputs / 4;
  static constexpr bool kBias = kHasBias;
};

// y[r] += the stage's inputs, groups of 32 from `group` on, for one part of the lanes.
template <typename Shape, int kRows>
inline void add_part(const Stage& stage, int32_t zero, int groups, const QuantizedRows& q, int64_t group, int first_row,
                     int p, Part (&y)[kRows]) {
  using Product = typename Shape::Product;
  const int32_t offset = Product::kCentre - zero;
  for (int g = 0; g < groups; ++g) {
    const int64_t tile = (group + g) * q.rows + first_row;
    const float* x_scale = q.scale + tile;
    const int32_t* x_sums = q.sum + tile + (group + g) * q.rows;
#pragma GCC unroll 2
    for (int s = 0; s < Shape::kScales; ++s) {
      const int at = g * Shape::kScales + s;
      int32_t x_sum[kRows];
      typename Product::Sums sums[kRows];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        x_sum[r] = Shape::kScales == 1 ? x_sums[r] : s == 0 ? x_sums[q.rows + r] : x_sums[r] - x_sums[q.rows + r];
        sums[r] = Product::start(offset * x_sum[r]);
      }
#pragma GCC unroll 8
      for (int step = 0; step < Shape::kSteps; ++step) {
        const auto w = load_codes(stage.codes[at * Shape::kSteps + step] + p * kPartLanes * 4);
        const int8_t* x = q.codes + tile * kGroup + (s * Shape::kSteps + step) * 4;
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) sums[r] = Product::step(sums[r], w, repeat_codes(x + r * kGroup));
      }
      const Part scale = load(stage.scale[at] + p * kPartLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        y[r] = fused(to_float(Product::finish(sums[r], offset * x_sum[r])), scale * fill(x_scale[r]), y[r]);
      }
      if constexpr (Shape::kBias) {
        const Part bias = load(stage.bias[at] + p * kPartLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) y[r] = fused(bias, fill(x_scale[r] * static_cast<float>(x_sum[r])), y[r]);
      }
    }
  }
}

// y fp32 [rows][16] += the stage.
template <typename Shape>
void add_stage(const Stage& stage, int32_t zero, int groups, const QuantizedRows& q, int64_t group,
               float (*y)[kLanes]) {
  in_powers(q.rows, [&](auto count, int first_row) {
    constexpr int kRows = decltype(count)::value;
    for (int p = 0; p < kParts; ++p) {
      Part sums[kRows];
      for (int r = 0; r < kRows; ++r) sums[r] = load(y[first_row + r] + p * kPartLanes);
      add_part<Shape>(stage, zero, groups, q, group, first_row, p, sums);
      for (int r = 0; r < kRows; ++r) store(y[first_row + r] + p * kPartLanes, sums[r]);
    }
  });
}

inline void store_rows(const Gemm& g, int64_t panel, const float (*y)[kLanes]) {
  for (int r = 0; r < g.rows; ++r) {
    __builtin_memcpy(g.y + r * g.ldy + (panel - g.panel_begin) * kLanes, y[r], sizeof y[r]);
  }
}

// How far ahead packed bytes are fetched, by several rows of activations and by one.
constexpr int64_t kStagePrefetchBytes = 6144, kDotPrefetchBytes = 4096;

// One row of activations: codes go into its dot products at once, the same in the same order as through a stage.
template <typename E>
void dotted_panels(const Gemm& g) {
  using Product = ProductOf<E::kLargest>;
  constexpr int kBlock = E::kBytes * kLanes, kScales = E::kInputs / E::kScaled;
  constexpr int32_t kOffset = Product::kCentre - E::kZero;
  alignas(64) float scale[kScales][kLanes], bias[kScales][kLanes];
  for (int64_t panel = g.panel_begin; panel < g.panel_end; ++panel) {
    const uint8_t* block = g.w->codes + panel * g.w->panel_bytes;
    Part y[kParts];
    for (Part& part : y) part = fill(0.0f);
    for (int64_t k = 0; k < g.w->k; k += E::kInputs, block += kBlock) {
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
    for (int p = 0; p < kParts; ++p) store(g.y + (panel - g.panel_begin) * kLanes + p * kPartLanes, y[p]);
  }
}

template <typename E>
void staged_panels(const Gemm& g) {
  if constexpr (!E::kByRow) {
    if (g.rows == 1) return dotted_panels<E>(g);
  }
  using Shape = StageShape<E::kScaled, E::kBias, ProductOf<E::kLargest>>;
  constexpr int kBlock = E::kBytes * kLanes;
  Stage stage;
  for (int64_t panel = g.panel_begin; panel < g.panel_end; ++panel) {
    const uint8_t* block = g.w->codes + panel * g.w->panel_bytes;
    float y[kMostRows][kLanes];
    __builtin_memset(y, 0, static_cast<std::size_t>(g.rows) * sizeof y[0]);
    for (int64_t k = 0; k < g.w->k; k += kStageInputs) {
      const int inputs = static_cast<int>(g.w->k - k < kStageInputs ? g.w->k - k : kStageInputs);
      for (int at = 0; at < inputs; at += E::kInputs, block += kBlock) {
        for (int line = 0; line < kBlock; line += 64) __builtin_prefetch(block + kStagePrefetchBytes + line);
        unpack<E>(block, stage, at / kGroup);
      }
      for (int row = 0; row < g.rows; row += kTileRows) {
        add_stage<Shape>(stage, E::kZero, inputs / kGroup, tile_at(g, row), k / kGroup, y + row);
      }
    }
    store_rows(g, panel, y);
  }
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
        in_powers(tile.rows, [&](auto count, int first_row) {
          add_table_group<decltype(count)::value>(high, low, halves(scale), g.w->table_scale, tile, group, first_row,
                                                  y + row);
        });
      }
      if (group % shared == shared - 1) scale += cell.bytes;
    }
    store_rows(g, panel, y);
  }
}

}  // namespace

void gemm(const Gemm& g) {
  switch (g.w->encoding) {
    case Encoding::kInt4: return each_tile(g, gemm_integers<NibbleDot, true>);
    case Encoding::kInt8: return each_tile(g, gemm_integers<ByteDot, false>);
    case Encoding::kF16: return each_tile(g, float_panels<HalfBits>);
    case Encoding::kBF16: return each_tile(g, float_panels<BFloatBits>);
    case Encoding::kF32: return each_tile(g, float_panels<float>);
    case Encoding::kTable4: return table_panels(g);
#define CPUINFER_STAGED(encoding, Unpacked, name) \
  case Encoding::encoding: return staged_panels<Unpacked>(g);
      CPUINFER_BLOCK_ENCODINGS(CPUINFER_STAGED)
#undef CPUINFER_STAGED
  }
}
