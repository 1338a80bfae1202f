// Products on tile units: 32 rows of activations times one or two panels of tiles.
// Included inside the set's namespace, after tile_unpack.inl.h.

namespace {

// y [32][16 kPanels] (+)= x [steps][32][32] times tiles [kPanels][steps], the second panel's `panel` numbers further
// on.
template <int kPanels>
inline void multiply_block(const uint16_t* x, const uint16_t* w, int64_t panel, int64_t steps, bool first, float* y,
                           int64_t ldy) {
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
    load_tile<4>(x, 64);
    multiply_tile<0, 4, 6>();
    load_tile<5>(x + 16 * kLineHalves, 64);
    multiply_tile<2, 5, 6>();
    if constexpr (kPanels == 2) {
      load_tile<7>(w + panel, 64);
      multiply_tile<1, 4, 7>();
      multiply_tile<3, 5, 7>();
    }
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

void multiply_tiles(const TileProduct& g) {
  alignas(64) uint16_t tiles[2 * kTileInputs * kLanes];
  configure_tiles();
  const int64_t inputs = round_up_to_groups(g.w->k);
  for (int64_t begin = 0; begin < inputs; begin += kTileInputs) {
    const int64_t end = inputs - begin < kTileInputs ? inputs : begin + kTileInputs, steps = (end - begin) / kGroup;
    for (int64_t panel = g.panel_begin; panel < g.panel_end; panel += 2) {
      const bool two = panel + 1 < g.panel_end;
      unpack_tiles(*g.w, panel, begin, end, tiles);
      if (two) unpack_tiles(*g.w, panel + 1, begin, end, tiles + kTileInputs * kLanes);
      for (int64_t row = 0; row < g.rows; row += kTileBlock) {
        const uint16_t* x = g.x + begin * g.rows + row * (end - begin);
        float* y = g.y + row * g.ldy + (panel - g.panel_begin) * kLanes;
        if (two) {
          multiply_block<2>(x, tiles, kTileInputs * kLanes, steps, begin == 0, y, g.ldy);
        } else {
          multiply_block<1>(x, tiles, 0, steps, begin == 0, y, g.ldy);
        }
      }
    }
  }
  release_tiles();
}
