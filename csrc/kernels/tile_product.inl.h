// Products on tile units: 32 rows of activations times one or two panels of tiles.
// Included inside the set's namespace, after tile_unpack.inl.h.

namespace {

// How often the tiles of rows are read: from the first cache, or from the second, past the weights that stay in the
// first.
enum class Rows { kKept, kStreamed };

template <Rows rows, int tile>
inline void load_rows(const uint16_t* x) {
  rows == Rows::kKept ? load_tile<tile>(x, 64) : stream_tile<tile>(x, 64);
}

// y [32][16 kPanels] (+)= x [steps][32][32] times tiles [kPanels][steps], the second panel's `panel` numbers further
// on.  between(s) is done while the products of step s are.
template <int kPanels, Rows rows, typename Between>
inline void multiply_block(const uint16_t* x, const uint16_t* w, int64_t panel, int64_t steps, bool first, float* y,
                           int64_t ldy, const Between& between) {
  const int64_t stride = ldy * int64_t{sizeof(float)};
  float* lower = y + 16 * ldy;
  if (first) {
    clear_tile<0>();
    clear_tile<1>();
    clear_tile<2>();
    clear_tile<3>();
  } else {
    load_tile<0>(y, stride);
    load_tile<2>(lower, stride);
    if constexpr (kPanels == 2) {
      load_tile<1>(y + kLanes, stride);
      load_tile<3>(lower + kLanes, stride);
    }
  }
  for (int64_t s = 0; s < steps; ++s, x += kTileBlock * kLineHalves, w += kTileHalves) {
    load_tile<6>(w, 64);
    load_rows<rows, 4>(x);
    multiply_tile<0, 4, 6>();
    load_rows<rows, 5>(x + 16 * kLineHalves);
    multiply_tile<2, 5, 6>();
    if constexpr (kPanels == 2) {
      load_tile<7>(w + panel, 64);
      multiply_tile<1, 4, 7>();
      multiply_tile<3, 5, 7>();
    }
    between(s);
  }
  store_tile<0>(y, stride);
  store_tile<2>(lower, stride);
  if constexpr (kPanels == 2) {
    store_tile<1>(y + kLanes, stride);
    store_tile<3>(lower + kLanes, stride);
  }
}

// Numbers at p, of which there are n; zeros after them.
inline Part load_up_to(const float* p, int64_t n) {
  return n >= kLanes ? load(p) : n > 0 ? load_first(p, n) : fill(0.0f);
}

}  // namespace

void to_tiles(const float* x, int64_t k, int64_t rows, int64_t row, uint16_t* tiles) {
  const int64_t inputs = round_up_to_groups(k), in_block = row % kTileBlock;
  for (int64_t begin = 0; begin < inputs; begin += kTileInputs) {
    const int64_t count = inputs - begin < kTileInputs ? inputs - begin : kTileInputs;
    uint16_t* out = tiles + begin * rows + (row - in_block) * count + in_block * kLineHalves;
    for (int64_t i = begin; i < begin + count; i += kGroup, out += kTileBlock * kLineHalves) {
      store_halves(out, in_order(load_up_to(x + i, k - i), load_up_to(x + i + kLanes, k - i - kLanes)));
    }
  }
}

namespace {

// The slices of a product in order: every kTileInputs inputs, of which two panels at a time.
class TileSlices {
 public:
  explicit TileSlices(const TileProduct& g)
      : g_(g), inputs_(round_up_to_groups(g.w->k)), pairs_((g.panel_end - g.panel_begin + 1) / 2) {}

  int64_t count() const { return (inputs_ + kTileInputs - 1) / kTileInputs * pairs_; }
  TileSlice operator[](int64_t i) const {
    const int64_t panel = g_.panel_begin + i % pairs_ * 2, begin = i / pairs_ * kTileInputs;
    const int64_t end = inputs_ - begin < kTileInputs ? inputs_ : begin + kTileInputs;
    return {panel, g_.panel_end - panel < 2 ? 1 : 2, begin, end};
  }

 private:
  const TileProduct& g_;
  int64_t inputs_, pairs_;
};

template <int kPanels, typename Source>
inline void multiply_slice(const TileProduct& g, const TileSlice& slice, const uint16_t* tiles,
                           Unpacking<Source>& next) {
  const int64_t inputs = slice.end - slice.begin, steps = inputs / kGroup, calls = g.rows / kTileBlock * steps;
  const int64_t parts = (next.left() + calls - 1) / calls;
  const uint16_t* x = g.x + slice.begin * g.x_rows + g.row * inputs;
  float* y = g.y + (slice.panel - g.panel_begin) * kLanes;
  for (int64_t row = 0; row < g.rows; row += kTileBlock, x += kTileBlock * inputs, y += kTileBlock * g.ldy) {
    const float* after = y + kTileBlock * g.ldy;  // the next rows' sums
    multiply_block<kPanels, Rows::kStreamed>(x, tiles, kTileInputs * kLanes, steps, slice.begin == 0, y, g.ldy,
                                             [&](int64_t s) {
                                               next.advance(parts);
                                               for (int64_t r = 2 * s; r < 2 * s + 2; ++r) {
                                                 __builtin_prefetch(after + r * g.ldy);
                                                 __builtin_prefetch(after + r * g.ldy + kLanes);
                                               }
                                             });
  }
}

template <typename Source>
void multiply_from(const TileProduct& g) {
  alignas(64) uint16_t tiles[2][2 * kTileInputs * kLanes];
  const TileSlices slices(g);
  const int64_t count = slices.count();
  Unpacking<Source> next(*g.w);
  next.start(slices[0], slices[count > 1 ? 1 : 0], tiles[0]);
  next.finish();
  for (int64_t i = 0; i < count; ++i) {
    const TileSlice slice = slices[i];
    if (i + 1 < count) next.start(slices[i + 1], slices[i + 2 < count ? i + 2 : i + 1], tiles[(i + 1) % 2]);
    if (slice.panels == 2) {
      multiply_slice<2>(g, slice, tiles[i % 2], next);
    } else {
      multiply_slice<1>(g, slice, tiles[i % 2], next);
    }
    next.finish();
  }
}

}  // namespace

void multiply_tiles(const TileProduct& g) {
  configure_tiles();
  switch (g.w->encoding) {
    case Encoding::kInt4:
    case Encoding::kTable4: multiply_from<IntegerSource<true>>(g); break;
    case Encoding::kInt8: multiply_from<IntegerSource<false>>(g); break;
    case Encoding::kF16: multiply_from<FloatSource<load_half>>(g); break;
    case Encoding::kBF16: multiply_from<FloatSource<load_bfloat>>(g); break;
    case Encoding::kF32: break;  // never on tile units: fits_tiles()
#define CPUINFER_TILES(encoding, Unpacked, name) \
  case Encoding::encoding: multiply_from<BlockSource<Unpacked>>(g); break;
      CPUINFER_BLOCK_ENCODINGS(CPUINFER_TILES)
#undef CPUINFER_TILES
  }
  release_tiles();
}
