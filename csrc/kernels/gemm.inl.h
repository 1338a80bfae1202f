// Bodies of the matrix products, written once over the including file's parts and dot products.
// Included inside that file's namespace, after floats.inl.h; for codes that dot products take as they are, and floats.

namespace {

// Runs of panels that one row is multiplied by side by side; results of twice as many would not stay in registers.
constexpr int kSideBySide = kPanelsAtOnce / kParts;

// How far ahead a sweep of several rows fetches codes: it loads too rarely for the processor to run ahead by itself.
constexpr int64_t kPrefetchBytes = 2048;

inline const uint16_t* halves(const uint8_t* p) { return reinterpret_cast<const uint16_t*>(p); }

template <int kCount>
struct Count {
  static constexpr int value = kCount;
};

// Calls body(Count<rows>{}), 1 <= rows <= kMost: the number of rows becomes a constant, its accumulators registers.
template <int kMost, typename Body>
inline void with_rows(int rows, const Body& body) {
  if constexpr (kMost > 1) {
    if (rows < kMost) return with_rows<kMost - 1>(rows, body);
  }
  body(Count<kMost>{});
}

// Calls body(Count<rows>{}, row) for blocks of at most kMost rows.
template <int kMost, typename Body>
inline void in_blocks(int rows, const Body& body) {
  for (int row = 0; row < rows; row += kMost) {
    with_rows<kMost>(rows - row < kMost ? rows - row : kMost, [&](auto count) { body(count, row); });
  }
}

// Calls body(Count<rows>{}, row) for blocks of kMost, a power of two, and then of smaller powers.
template <int kMost, typename Body>
inline void in_powers(int rows, const Body& body, int row = 0) {
  for (; rows - row >= kMost; row += kMost) body(Count<kMost>{}, row);
  if constexpr (kMost > 1) in_powers<kMost / 2>(rows, body, row);
}

inline QuantizedRows tile_at(const Gemm& g, int row) {
  const QuantizedRows& q = g.quantized;
  const int rows = g.rows - row < kTileRows ? g.rows - row : kTileRows;
  if (q.codes == nullptr) return {rows, nullptr, nullptr, nullptr};
  return {rows, q.codes + row * g.w->k, q.scale + row * (g.w->k / kGroup), q.sum + row * (g.w->k / kHalf)};
}

// Calls body(product of one tile) for each, of kernels that take the codes as they are.
template <typename Body>
inline void each_tile(const Gemm& g, const Body& body) {
  for (int row = 0; row < g.rows; row += kTileRows) {
    Gemm tile = g;
    tile.quantized = tile_at(g, row);
    tile.x = g.x == nullptr ? nullptr : g.x + row * g.ldx;
    tile.rows = tile.quantized.rows;
    tile.y = g.y + row * g.ldy;
    body(tile);
  }
}

template <int kRows>
inline void store_panel(const Gemm& g, int64_t panel, int first_row, const Part (&y)[kRows][kParts]) {
  for (int r = 0; r < kRows; ++r) {
    float* out = g.y + (first_row + r) * g.ldy + (panel - g.panel_begin) * kLanes;
    for (int p = 0; p < kParts; ++p) store(out + p * kPartLanes, y[r][p]);
  }
}

// sums[r] = integer dot products of one group, for the rows of a panel's part; `codes` is that part's first byte.
template <typename Dot, bool kNibbles, int kRows>
inline void dot_group(const uint8_t* codes, const int8_t* x, typename Dot::Sums (&sums)[kRows]) {
  constexpr int kBlock = kLanes * 4;  // bytes: 16 rows of four codes
#pragma GCC unroll 8
  for (int s = 0; s < (kNibbles ? 4 : 8); ++s) {
    const auto w = load_codes(codes + s * kBlock);
    if constexpr (kNibbles) {
      const auto low = low_nibbles(w), high = high_nibbles(w);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        sums[r] = Dot::step(sums[r], low, repeat_codes(x + r * kGroup + 4 * s));
        sums[r] = Dot::step(sums[r], high, repeat_codes(x + r * kGroup + 16 + 4 * s));
      }
    } else {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) sums[r] = Dot::step(sums[r], w, repeat_codes(x + r * kGroup + 4 * s));
    }
  }
}

// kGrouped: scales may be for several groups, with a zero point each.
template <typename Dot, bool kNibbles, bool kGrouped, int kRows>
void integer_panel(const Gemm& g, int64_t panel, int first_row) {
  constexpr int kGroupBytes = kLanes * kGroup / (kNibbles ? 2 : 1);
  const Cell& cell = g.w->cell;
  const bool zeros = kGrouped && cell.zeros;
  const int32_t offset = Dot::kCentre - (zeros ? 0 : g.w->zero);
  const int64_t cells = g.w->k / g.w->group;
  const uint8_t* codes = g.w->codes + panel * g.w->panel_bytes;
  const uint8_t* scale = codes + cell.codes;
  const int64_t to_bias = cell.bias - cell.codes, to_zeros = cell.zeros - cell.codes;
  const int8_t* x = g.quantized.codes + first_row * kGroup;
  const float* x_scale = g.quantized.scale + first_row;
  const int32_t* x_sum = g.quantized.sum + first_row;
  Part y[kRows][kParts];
  for (auto& row : y) {
    for (Part& part : row) part = fill(0.0f);
  }
  for (const uint8_t* end = codes + cells * cell.bytes; codes < end;) {
    if constexpr (kRows > 1) {
      for (int line = 0; line < kGroupBytes; line += 64) __builtin_prefetch(codes + kPrefetchBytes + line);
    }
#pragma GCC unroll 2
    for (int p = 0; p < kParts; ++p) {
      typename Dot::Sums sums[kRows];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) sums[r] = Dot::start(offset * x_sum[r]);
      dot_group<Dot, kNibbles, kRows>(codes + p * kPartLanes * 4, x, sums);
      const Part w_scale = load_half(halves(scale) + p * kPartLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        Bits dot = Dot::finish(sums[r], offset * x_sum[r]);
        if (zeros) dot = minus(dot, times(widen_bytes(scale + to_zeros + p * kPartLanes), fill_bits(x_sum[r])));
        y[r][p] = fused(to_float(dot), w_scale * fill(x_scale[r]), y[r][p]);
      }
      if (cell.bias) {
        const Part w_bias = load_half(halves(scale + to_bias) + p * kPartLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          y[r][p] = fused(w_bias, fill(x_scale[r] * static_cast<float>(x_sum[r])), y[r][p]);
        }
      }
    }
    codes += kGroupBytes;
    x += g.quantized.rows * kGroup;
    x_scale += g.quantized.rows;
    x_sum += g.quantized.rows * 2;
    if (!kGrouped || codes == scale) {
      codes = scale - cell.codes + cell.bytes;
      scale += cell.bytes;
    }
  }
  store_panel(g, panel, first_row, y);
}

// One row, kPanels panels side by side, `apart` panels from each other.
template <typename Dot, bool kNibbles, bool kGrouped, int kPanels>
void integer_row(const Gemm& g, int64_t panel, int64_t apart) {
  constexpr int kGroupBytes = kLanes * kGroup / (kNibbles ? 2 : 1);
  const Cell& cell = g.w->cell;
  const bool zeros = kGrouped && cell.zeros;
  const int32_t offset = Dot::kCentre - (zeros ? 0 : g.w->zero);
  const int64_t groups = g.w->k / kGroup, shared = kGrouped ? g.w->group / kGroup : 1;
  const uint8_t* first = g.w->codes + panel * g.w->panel_bytes;
  Part y[kPanels][kParts];
  for (auto& one : y) {
    for (Part& part : one) part = fill(0.0f);
  }
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t in_cell = kGrouped ? group % shared : 0;
    const uint8_t* at = first + (kGrouped ? group / shared : group) * cell.bytes;
    const int8_t* x = g.quantized.codes + group * kGroup;
    const float x_scale = g.quantized.scale[group];
    const int32_t x_sum = g.quantized.sum[group * 2];
#pragma GCC unroll 8
    for (int i = 0; i < kPanels; ++i, at += apart * g.w->panel_bytes) {
      const uint8_t* scale = at + cell.codes;
#pragma GCC unroll 2
      for (int p = 0; p < kParts; ++p) {
        typename Dot::Sums sums[1] = {Dot::start(offset * x_sum)};
        dot_group<Dot, kNibbles, 1>(at + in_cell * kGroupBytes + p * kPartLanes * 4, x, sums);
        Bits dot = Dot::finish(sums[0], offset * x_sum);
        if (zeros) dot = minus(dot, times(widen_bytes(at + cell.zeros + p * kPartLanes), fill_bits(x_sum)));
        y[i][p] = fused(to_float(dot), load_half(halves(scale) + p * kPartLanes) * fill(x_scale), y[i][p]);
        if (cell.bias) {
          const Part bias = load_half(halves(at + cell.bias) + p * kPartLanes);
          y[i][p] = fused(bias, fill(x_scale * static_cast<float>(x_sum)), y[i][p]);
        }
      }
    }
  }
  for (int i = 0; i < kPanels; ++i) {
    float* out = g.y + (panel + i * apart - g.panel_begin) * kLanes;
    for (int p = 0; p < kParts; ++p) store(out + p * kPartLanes, y[i][p]);
  }
}

// Cuts panels into kMost runs of neighbours that are read side by side, as processors fetch ahead along several runs
// faster than along one: calls body(Count<runs>{}, panel, apart) for panels `apart` from each other, one of each run.
template <int kMost, typename Body>
inline void in_runs(int64_t panel, int64_t end, const Body& body) {
  const int64_t apart = (end - panel) / kMost;
  for (int64_t i = 0; i < apart; ++i) body(Count<kMost>{}, panel + i, apart);
  if constexpr (kMost > 1) in_runs<kMost / 2>(panel + apart * kMost, end, body);
}

template <typename Dot, bool kNibbles, bool kGrouped>
void integer_panels(const Gemm& g) {
  if (g.rows == 1) {
    return in_runs<kSideBySide>(g.panel_begin, g.panel_end, [&](auto count, int64_t panel, int64_t apart) {
      integer_row<Dot, kNibbles, kGrouped, decltype(count)::value>(g, panel, apart);
    });
  }
  for (int64_t panel = g.panel_begin; panel < g.panel_end; ++panel) {
    in_blocks<kIntegerRows>(g.rows, [&](auto rows, int first_row) {
      integer_panel<Dot, kNibbles, kGrouped, decltype(rows)::value>(g, panel, first_row);
    });
  }
}

template <typename Dot, bool kNibbles>
void gemm_integers(const Gemm& g) {
  if (g.w->group == kGroup && !g.w->cell.zeros) return integer_panels<Dot, kNibbles, false>(g);
  return integer_panels<Dot, kNibbles, true>(g);
}

inline Part widen(const float* w) { return load(w); }
struct HalfBits {
  uint16_t bits;
};
struct BFloatBits {
  uint16_t bits;
};
inline Part widen(const HalfBits* w) { return load_half(&w->bits); }
inline Part widen(const BFloatBits* w) { return load_bfloat(&w->bits); }

template <typename Element, int kRows>
void float_panel(const Gemm& g, int64_t panel, int first_row) {
  const Element* w = reinterpret_cast<const Element*>(g.w->codes + panel * g.w->panel_bytes);
  const float* x = g.x + first_row * g.ldx;
  Part y[kRows][kParts];
  for (auto& row : y) {
    for (Part& part : row) part = fill(0.0f);
  }
  for (int64_t k = 0; k < g.w->k; ++k, w += kLanes) {
#pragma GCC unroll 2
    for (int p = 0; p < kParts; ++p) {
      const Part weight = widen(w + p * kPartLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) y[r][p] = fused(weight, fill(x[r * g.ldx + k]), y[r][p]);
    }
  }
  store_panel(g, panel, first_row, y);
}

template <typename Element>
void float_panels(const Gemm& g) {
  for (int64_t panel = g.panel_begin; panel < g.panel_end; ++panel) {
    in_blocks<kFloatRows>(
        g.rows, [&](auto rows, int first_row) { float_panel<Element, decltype(rows)::value>(g, panel, first_row); });
  }
}

}  // namespace
