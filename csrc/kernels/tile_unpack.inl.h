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

// A source writes a panel's inputs, from `begin` on, to tiles: part i is a quarter of 32 of them.  begin is a multiple
// of kTileInputs; the last part may lie behind the inputs, and is then zero.
constexpr int64_t kParts = 4;                          // of 32 inputs
constexpr int64_t kPartHalves = kTileHalves / kParts;  // bf16 numbers of a part

// kInt4, kInt8 and kTable4.
template <bool kNibbles>
class IntegerSource {
 public:
  explicit IntegerSource(const Weights& w) : w_(w), looked_up_(w.encoding == Encoding::kTable4) {
    alignas(64) float numbers[kLanes];
    for (int i = 0; i < kLanes; ++i) numbers[i] = looked_up_ ? w.table_scale * w.table[i] : static_cast<float>(i);
    table_ = load(numbers);
  }

  const uint8_t* address(int64_t panel, int64_t begin) const {
    return w_.codes + panel * w_.panel_bytes + begin / w_.group * w_.cell.bytes +
           begin % w_.group / kGroup * kGroupBytes;
  }
  int64_t part_bytes() const { return kGroupBytes / kParts + 2 * kLanes * kGroup / kParts / w_.group; }

  void open(int64_t panel, int64_t begin) {
    panel_ = w_.codes + panel * w_.panel_bytes;
    group_ = begin / kGroup;
  }

  void write(int64_t i, uint16_t* tiles) {
    if (i % kParts == 0) read_group(group_ + i / kParts);
    const uint8_t* codes = codes_ + i % kParts * (kGroupBytes / kParts);
    uint16_t* out = tiles + i / kParts * kTileHalves;
    if constexpr (kNibbles) {
      const Bits line = load_codes(codes);
      store_looked_up<0>(out + i % kParts * kPartHalves / 2, line, table_, scale_, offset_);
      store_looked_up<4>(out + (i % kParts + kParts) * kPartHalves / 2, line, table_, scale_, offset_);
    } else {
      store_scaled(out + i % kParts * kPartHalves, load_codes(codes), scale_, offset_);
      store_scaled(out + i % kParts * kPartHalves + kPartHalves / 2, load_codes(codes + kLine), scale_, offset_);
    }
  }

 private:
  static constexpr int64_t kGroupBytes = kLanes * kGroup / (kNibbles ? 2 : 1);

  void read_group(int64_t group) {
    const Cell& cell = w_.cell;
    const int64_t shared = w_.group / kGroup;
    const uint8_t* at = panel_ + group / shared * cell.bytes;
    codes_ = at + group % shared * kGroupBytes;
    scale_ = load_half(halves(at + cell.codes));
    offset_ = fill(0.0f);
    if (looked_up_) return;
    const Bits zero = cell.zeros ? widen_bytes(at + cell.zeros) : fill_bits(w_.zero);
    offset_ = scale_ * to_float(minus(fill_bits(0), zero));
    if (cell.bias) offset_ = offset_ + load_half(halves(at + cell.bias));
  }

  const Weights& w_;
  bool looked_up_;
  Part table_, scale_, offset_;
  const uint8_t *panel_, *codes_;
  int64_t group_;
};

template <typename E>
class BlockSource {
 public:
  explicit BlockSource(const Weights& w) : w_(w) {}

  const uint8_t* address(int64_t panel, int64_t begin) const {
    return w_.codes + panel * w_.panel_bytes + begin / E::kInputs * kBlock;
  }
  int64_t part_bytes() const { return kBlock * (kGroup / kParts) / E::kInputs; }

  void open(int64_t panel, int64_t begin) { block_ = address(panel, begin); }

  void write(int64_t i, uint16_t* tiles) {
    const int64_t input = i * (kGroup / kParts) % E::kInputs, line = input / 4;
    if (input == 0) {
      unpack<E>(block_, stage_, 0);
      block_ += kBlock;
    }
    const Part scale = load(stage_.scale[input / E::kScaled]);
    Part offset = scale * fill(static_cast<float>(-E::kZero));
    if constexpr (E::kBias) offset = offset + load(stage_.bias[input / E::kScaled]);
    uint16_t* out = tiles + i * kPartHalves;
    store_scaled(out, load_codes(stage_.codes[line]), scale, offset);
    store_scaled(out + kPartHalves / 2, load_codes(stage_.codes[line + 1]), scale, offset);
  }

 private:
  static constexpr int64_t kBlock = E::kBytes * kLanes;

  const Weights& w_;
  const uint8_t* block_;
  Stage stage_;
};

// kF16 and kBF16, by how 16 of them are loaded.
template <Part (*load_sixteen)(const uint16_t*)>
class FloatSource {
 public:
  explicit FloatSource(const Weights& w) : w_(w) {}

  const uint8_t* address(int64_t panel, int64_t begin) const {
    return w_.codes + panel * w_.panel_bytes + begin * kLanes * int64_t{sizeof(uint16_t)};
  }
  int64_t part_bytes() const { return kPartHalves * int64_t{sizeof(uint16_t)}; }

  void open(int64_t panel, int64_t begin) {
    at_ = halves(address(panel, begin));
    left_ = w_.k - begin;
  }

  void write(int64_t i, uint16_t* tiles) {
    const auto numbers = [&](int64_t k) { return k < left_ ? load_sixteen(at_ + k * kLanes) : fill(0.0f); };
    uint16_t* out = tiles + i * kPartHalves;
    for (int64_t k = i * (kGroup / kParts); k < (i + 1) * (kGroup / kParts); k += 2, out += 2 * kLanes) {
      store_halves(out, paired(numbers(k), numbers(k + 1)));
    }
  }

 private:
  const Weights& w_;
  const uint16_t* at_;
  int64_t left_;
};

// A part of a product: inputs [begin, end) of one or two panels.
struct TileSlice {
  int64_t panel, panels, begin, end;
  int64_t panel_parts() const { return (end - begin) / kGroup * kParts; }
  int64_t parts() const { return panels * panel_parts(); }
};

// A slice on its way to tiles [panels][kTileInputs / 32], a few parts at a time: between the tile products of the slice
// before, whose waits it fills.  What comes after it is fetched meanwhile.
template <typename Source>
class Unpacking {
 public:
  explicit Unpacking(const Weights& w) : source_(w), part_bytes_(source_.part_bytes()) {}

  void start(const TileSlice& slice, const TileSlice& after, uint16_t* tiles) {
    slice_ = slice;
    after_ = after;
    tiles_ = tiles;
    done_ = 0;
    open(0);
  }

  void advance(int64_t parts) {
    const int64_t of_panel = slice_.panel_parts();
    for (const int64_t end = done_ + (parts < left() ? parts : left()); done_ < end; ++done_) {
      if (done_ == of_panel) open(1);
      const bool second = done_ >= of_panel;
      source_.write(second ? done_ - of_panel : done_, tiles_ + (second ? kTileInputs * kLanes : 0));
      for (int64_t byte = 0; byte < part_bytes_; byte += 64) __builtin_prefetch(fetched_ + byte);
      fetched_ += part_bytes_;
    }
  }

  int64_t left() const { return slice_.parts() - done_; }
  void finish() { advance(left()); }

 private:
  void open(int64_t panel) {
    source_.open(slice_.panel + panel, slice_.begin);
    fetched_ = source_.address(after_.panel + panel % after_.panels, after_.begin);
  }

  Source source_;
  int64_t part_bytes_;
  TileSlice slice_, after_;
  uint16_t* tiles_;
  const uint8_t* fetched_;
  int64_t done_;
};

}  // namespace
