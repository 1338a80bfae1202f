// Products of several rows: weights are unpacked once, a stage of some panels, and all rows multiplied from there.
// Included inside a set's namespace, after gemm.inl.h and the encodings of unpack.inl.h and grids.inl.h.
//
// What bounds them, for a row, a part of a panel and a group of 32 (512 bits: 1,024 operations; 256 bits: 512):
//   AVX-512 VNNI: 8 dot products, conversion, product of the scales, fma: 11 on 2 ports, so 5.5 cycles, at most 73 % of
//     the peak of dot products alone.  Two panels at once share the 8 + 2 loads that repeat an activation's four codes,
//     its start and its scale, four rows the 8 of weights: 7 loads a part, on 2 ports.  A bias is one fma more, scales
//     for 16 are three operations more.
//   AVX2: 8 products and 8 sums of 16 bits, one widening, and the same three: 20 on 3 ports, 6.7 cycles; 9 loads.
// Integer sums and results are 16 of 32 registers, or 8 of 16: results in memory cost no port that is busy, but their
// stores held up loads of other addresses.

namespace {

constexpr int kStagePanels = kColumns / kParts;

// A stage, and what some products make of its codes: see Product::settle.
struct Panel : Stage {
  alignas(64) uint8_t signs[kStageInputs / 4][kLine];
  alignas(64) int32_t start[kStageInputs / kHalf][kLanes];
};

// The same for all panels, of a tile's rows: where integer sums start, and what a bias is multiplied by.
struct Terms {
  alignas(64) int32_t start[kStageInputs / kHalf][kTileRows];
  alignas(64) float factor[kStageInputs / kHalf][kTileRows];
};

// fp32 [rows][panels][16].
using Results = float (*)[kStagePanels][kLanes];

// The cheapest product of codes up to a largest.
template <int kLargest>
using RowsOf = std::conditional_t<
    kLargest <= 15, NibbleRows,
    std::conditional_t<kLargest <= 63, SixBitRows, std::conditional_t<kLargest <= 127, SmallByteRows, ByteRows>>>;

// What the products of a stage depend on, of an encoding.
template <int kScaledInputs, bool kHasBias, typename Rows>
struct StageShape {
  using Product = Rows;
  static constexpr int kScales = kGroup / kScaledInputs;  // of a group of 32
  static constexpr int kSteps = kScaledInputs / 4;
  static constexpr bool kBias = kHasBias;
};

template <typename Shape, int kRows>
inline void find_terms(const QuantizedRows& q, int64_t group, int groups, int32_t zero, Terms& terms) {
  using Product = typename Shape::Product;
  const int32_t offset = Product::kCentre - zero;
  for (int g = 0; g < groups; ++g) {
    const int32_t* sums = q.sum + (group + g) * 2 * q.rows;
    const float* scale = q.scale + (group + g) * q.rows;
    for (int s = 0; s < Shape::kScales; ++s) {
      const int at = g * Shape::kScales + s;
      for (int r = 0; r < (kRows == 0 ? q.rows : kRows); ++r) {
        const int32_t sum = Shape::kScales == 1 ? sums[r] : s == 0 ? sums[q.rows + r] : sums[r] - sums[q.rows + r];
        terms.start[at][r] = Product::start_word(offset * sum);
        if constexpr (Shape::kBias) terms.factor[at][r] = scale[r] * static_cast<float>(sum);
      }
    }
  }
}

// y[column][row] += kPanels panels' stages, groups of 32 from `group` on; a column is a part of a panel's lanes.
template <typename Shape, int kPanels, int kRows>
inline void add_rows(const Panel* panels, const Terms& terms, int groups, const QuantizedRows& q, int64_t group,
                     int first_row, Part (&y)[kPanels * kParts][kRows]) {
  using Product = typename Shape::Product;
  constexpr int kCount = kPanels * kParts;
  const int8_t* x = q.codes + (group * q.rows + first_row) * kGroup;
  const float* x_scale = q.scale + group * q.rows + first_row;
  for (int at = 0; at < groups * Shape::kScales; x += q.rows * kGroup, x_scale += q.rows) {
#pragma GCC unroll 2
    for (int s = 0; s < Shape::kScales; ++s, ++at) {
      typename Product::Sums sums[kCount][kRows];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int c = 0; c < kCount; ++c) {
          sums[c][r] =
              Product::start(terms.start[at][first_row + r], panels[c / kParts].start[at] + c % kParts * kPartLanes);
        }
      }
#pragma GCC unroll 4
      for (int step = 0; step < Shape::kSteps; step += 2) {
        const int line = at * Shape::kSteps + step;
        typename Product::Two w[kCount];
#pragma GCC unroll 2
        for (int c = 0; c < kCount; ++c) {
          const Panel& panel = panels[c / kParts];
          w[c] = Product::two(panel.codes[line] + c % kParts * kPartBytes, panel.signs[line] + c % kParts * kPartBytes);
        }
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          const int8_t* codes = x + r * kGroup + (s * Shape::kSteps + step) * 4;
          const auto a = repeat_codes(codes), b = repeat_codes(codes + 4);
#pragma GCC unroll 2
          for (int c = 0; c < kCount; ++c) sums[c][r] = Product::step(sums[c][r], w[c], a, b);
        }
      }
#pragma GCC unroll 2
      for (int c = 0; c < kCount; ++c) {
        const Panel& panel = panels[c / kParts];
        const Part scale = load(panel.scale[at] + c % kParts * kPartLanes);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          y[c][r] = fused(to_float(Product::finish(sums[c][r])), scale * fill(x_scale[r]), y[c][r]);
        }
        if constexpr (Shape::kBias) {
          const Part bias = load(panel.bias[at] + c % kParts * kPartLanes);
#pragma GCC unroll 4
          for (int r = 0; r < kRows; ++r) y[c][r] = fused(bias, fill(terms.factor[at][first_row + r]), y[c][r]);
        }
      }
    }
  }
}

// Not inlined: encodings of the same shape share it.
template <typename Shape, int kPanels>
[[gnu::noinline]] void add_tile(const Panel* panels, int32_t zero, int groups, const QuantizedRows& q, int64_t group,
                                Results y) {
  Terms terms;
  if (q.rows == kTileRows) {
    find_terms<Shape, kTileRows>(q, group, groups, zero, terms);
  } else {
    find_terms<Shape, 0>(q, group, groups, zero, terms);
  }
  in_powers<kStageRows>(q.rows, [&](auto rows, int row) {
    constexpr int kRows = decltype(rows)::value, kCount = kPanels * kParts;
    Part sums[kCount][kRows];
    const auto out = [&](int c, int r) { return y[row + r][c / kParts] + c % kParts * kPartLanes; };
#pragma GCC unroll 2
    for (int c = 0; c < kCount; ++c) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sums[c][r] = load(out(c, r));
    }
    add_rows<Shape, kPanels>(panels, terms, groups, q, group, row, sums);
#pragma GCC unroll 2
    for (int c = 0; c < kCount; ++c) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) store(out(c, r), sums[c][r]);
    }
  });
}

// Products of panels that fill(panel, k, inputs, stage) unpacks, inputs [k, k + inputs) of each.
template <typename Shape, typename Fill>
inline void staged_product(const Gemm& g, int32_t zero, const Fill& fill) {
  Panel panels[kStagePanels];
  alignas(64) float y[kMostRows][kStagePanels][kLanes];
  for (int64_t first = g.panel_begin; first < g.panel_end; first += kStagePanels) {
    const int count = static_cast<int>(g.panel_end - first < kStagePanels ? g.panel_end - first : kStagePanels);
    __builtin_memset(y, 0, static_cast<std::size_t>(g.rows) * sizeof y[0]);
    for (int64_t k = 0; k < g.w->k; k += kStageInputs) {
      const int inputs = static_cast<int>(g.w->k - k < kStageInputs ? g.w->k - k : kStageInputs);
      for (int p = 0; p < count; ++p) {
        fill(g.w->codes + (first + p) * g.w->panel_bytes, k, inputs, panels[p]);
        if constexpr (Shape::Product::kSettles) {
          Shape::Product::settle(panels[p], panels[p].signs, panels[p].start, inputs, kGroup / Shape::kScales);
        }
      }
      for (int row = 0; row < g.rows; row += kTileRows) {
        const QuantizedRows tile = tile_at(g, row);
        if (count == kStagePanels) {
          add_tile<Shape, kStagePanels>(panels, zero, inputs / kGroup, tile, k / kGroup, y + row);
        } else {
          add_tile<Shape, 1>(panels, zero, inputs / kGroup, tile, k / kGroup, y + row);
        }
      }
    }
    for (int r = 0; r < g.rows; ++r) {
      float* out = g.y + r * g.ldy + (first - g.panel_begin) * kLanes;
      for (int p = 0; p < count; ++p) __builtin_memcpy(out + p * kLanes, y[r][p], sizeof y[r][p]);
    }
  }
}

// The next stage's bytes are fetched while this one is multiplied.
inline void fetch(const uint8_t* bytes, int64_t count) {
  for (int64_t line = 0; line < count; line += 64) __builtin_prefetch(bytes + line);
}

template <typename E>
void staged_blocks(const Gemm& g) {
  static_assert(E::kLargest > 15 || E::kZero <= 8);  // as NibbleRows needs it
  constexpr int kBlock = E::kBytes * kLanes;
  using Shape = StageShape<E::kScaled, E::kBias, RowsOf<E::kLargest>>;
  staged_product<Shape>(g, E::kZero, [](const uint8_t* panel, int64_t k, int inputs, Panel& stage) {
    const uint8_t* block = panel + k / E::kInputs * kBlock;
    for (int at = 0; at < inputs; at += E::kInputs, block += kBlock) {
      fetch(block + kStageInputs / E::kInputs * kBlock, kBlock);
      unpack<E>(block, stage, at / kGroup);
    }
  });
}

// Codes of a group of 32.
template <bool kNibbles>
inline void copy_codes(const uint8_t* codes, uint8_t (*lines)[kLine]) {
  for (int i = 0; i < (kNibbles ? 4 : 8) * kLine; i += kPartBytes) {
    const Line w = read<Line>(codes + i);
    const Line low = kNibbles ? w & 15 : w, high = w >> 4;
    __builtin_memcpy(lines[0] + i, &low, sizeof low);
    if constexpr (kNibbles) __builtin_memcpy(lines[4] + i, &high, sizeof high);
  }
}

template <bool kNibbles, bool kBias>
void staged_integers(const Gemm& g) {
  constexpr int kGroupBytes = kLanes * kGroup / (kNibbles ? 2 : 1);
  using Shape = StageShape<kGroup, kBias, RowsOf<kNibbles ? 15 : 255>>;
  const Cell& cell = g.w->cell;
  const int64_t shared = g.w->group / kGroup;
  staged_product<Shape>(g, g.w->zero, [&](const uint8_t* panel, int64_t k, int inputs, Panel& stage) {
    int64_t part = k / kGroup % shared;  // of a cell
    const uint8_t* at = panel + k / g.w->group * cell.bytes;
    for (int i = 0; i < inputs / kGroup; ++i) {
      fetch(at + part * kGroupBytes + 8 * (kGroupBytes + cell.bytes - cell.codes), kGroupBytes);
      copy_codes<kNibbles>(at + part * kGroupBytes, stage.codes + i * 8);
      write(halves_at(at + cell.codes), stage.scale[i]);
      if constexpr (kBias) write(halves_at(at + cell.bias), stage.bias[i]);
      if (++part == shared) part = 0, at += cell.bytes;
    }
  });
}

}  // namespace
