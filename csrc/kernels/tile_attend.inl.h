// Attention of whole pages of queries on tile units, over paged keys and values: the softmax is kept up with as
// positions come (Dao et al., FlashAttention, arXiv 2205.14135, algorithm 1), so that no score is ever written far.
// Included inside the set's namespace, after tile_cache.inl.h and exponential.inl.h.

namespace {

// The parts of TileAttend::room.  Strides of sums are in floats.
struct AttendRoom {
  int64_t key_steps, dims, queries;
  uint16_t *keys, *values, *q;
  float *sums, *largest, *total, *scores;
  uint16_t* weights;

  explicit AttendRoom(const TileAttend& a)
      : key_steps((a.head_dim + kGroup - 1) / kGroup), dims(round_up_to_lanes(a.head_dim)), queries(a.heads * a.rows) {
    auto* at = static_cast<uint8_t*>(a.room);
    const auto take = [&at](auto*& part, int64_t count) {
      part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(at);
      at += count * static_cast<int64_t>(sizeof *part);
    };
    take(keys, kTilePositions * key_steps * kGroup);
    take(values, kTilePositions * dims);
    take(q, queries * key_steps * kGroup);
    take(sums, queries * dims);
    take(scores, int64_t{kTileBlock} * kTilePositions);
    take(weights, int64_t{kTileBlock} * kTilePositions);
    take(largest, queries);
    take(total, queries);
  }
  // Blocks of kTileBlock queries of one head, one after the other.
  uint16_t* query_block(int64_t block) const { return q + block * kTileBlock * key_steps * kGroup; }
  float* sum_block(int64_t block) const { return sums + block * kTileBlock * dims; }
};

inline void read_queries(const TileAttend& a, const AttendRoom& room) {
  for (int64_t head = 0; head < a.heads; ++head) {
    for (int64_t row = 0; row < a.rows; ++row) {
      uint16_t* tiles = room.query_block((head * a.rows + row) / kTileBlock) + row % kTileBlock * kLineHalves;
      const float* q = a.q + row * a.stride + head * a.head_dim;
      if (a.cache == CacheType::kInt4) {
        copy_padded(q, a.head_dim, room.scores);  // free until the first block
        spread_head(room.scores, a.head_dim);
        q = room.scores;
      }
      for (int64_t d = 0; d < room.key_steps * kGroup; d += kGroup, tiles += kTileBlock * kLineHalves) {
        store_halves(tiles,
                     in_order(load_up_to(q + d, a.head_dim - d), load_up_to(q + d + kLanes, a.head_dim - d - kLanes)));
      }
    }
  }
}

// What one row does to its scores: positions before `begin` and from `limit` on are not seen.
struct SeenRow {
  int64_t first, begin, limit;  // position of the first score; those seen
  float scale, softcap, slope;

  // The score of positions t .. t + 15, -infinity where they are not seen.
  Part score(const float* scores, int64_t t, Part lanes) const {
    Part s = load(scores + (t - first)) * fill(scale);
    if (softcap != 0) {  // c tanh(s / c) = c (1 - 2 / (exp(2 s / c) + 1))
      s = fill(softcap) * (fill(1.0f) - fill(2.0f) / (exponential(s * fill(2.0f / softcap)) + fill(1.0f)));
    }
    if (slope != 0) s = fused(fill(slope), fill(static_cast<float>(t - (limit - 1))) + lanes, s);
    if (t >= begin && t + kLanes <= limit) return s;
    const auto seen = static_cast<__mmask16>(above(limit - t) & ~above(begin - t));
    return _mm512_mask_blend_ps(seen, fill(-__builtin_inff()), s);
  }
  // Lanes below n.
  static uint32_t above(int64_t n) { return n <= 0 ? 0u : n >= kLanes ? 0xffffu : (1u << n) - 1; }
};

// Scores of `count` positions become weights in bf16; largest and total follow, and sums are scaled to the new largest.
inline void weigh_row(const SeenRow& row, float* scores, int64_t count, uint16_t* weights, float& largest, float& total,
                      float* sums, int64_t dims) {
  alignas(64) float numbers[kLanes];
  for (int l = 0; l < kLanes; ++l) numbers[l] = static_cast<float>(l);
  const Part lanes = load(numbers);
  Part most = fill(largest);
  for (int64_t i = 0; i < count; i += kLanes) {
    const Part s = row.score(scores, row.first + i, lanes);
    store(scores + i, s);
    most = larger(s, most);
  }
  const float next = _mm512_reduce_max_ps(most);
  Part sum = fill(0.0f);
  for (int64_t i = 0; i < count; i += 2 * kLanes, weights += kTileBlock * kLineHalves) {
    const Part a = exponential(load(scores + i) - fill(next)), b = exponential(load(scores + i + kLanes) - fill(next));
    sum = sum + a + b;
    store_halves(weights, in_order(a, b));
  }
  if (next != largest) {
    const Part less = exponential(fill(largest - next));
    for (int64_t d = 0; d < dims; d += kLanes) store(sums + d, load(sums + d) * less);
    total *= _mm512_cvtss_f32(less);
    largest = next;
  }
  total += _mm512_reduce_add_ps(sum);
}

// A block of queries over positions [first, end), whose keys and values are tiles.
inline void attend_block(const TileAttend& a, const AttendRoom& room, int64_t block, int64_t first, int64_t end) {
  const int64_t head = block * kTileBlock / a.rows, row = block * kTileBlock % a.rows, position = a.position + row;
  end = end < position + kTileBlock ? end : position + kTileBlock;
  if (end <= first || (a.window > 0 && end <= position - a.window + 1)) return;
  const int64_t count = end - first;
  const auto nothing = [](int64_t) {};
  for (int64_t t = 0; t < count; t += kPageTokens) {
    multiply_block<2, Rows::kKept>(room.query_block(block), room.keys + t * room.key_steps * kGroup,
                                   room.key_steps * kTileHalves, room.key_steps, true, room.scores + t, kTilePositions,
                                   nothing);
  }
  float* sums = room.sum_block(block);
  for (int64_t r = 0; r < kTileBlock; ++r) {
    const int64_t limit = position + r + 1, at = block * kTileBlock + r;
    const int64_t begin = a.window > 0 && limit > a.window ? limit - a.window : 0;
    const SeenRow seen{first, begin, limit, a.scale, a.softcap, a.slope == nullptr ? 0.0f : a.slope[head]};
    weigh_row(seen, room.scores + r * kTilePositions, count, room.weights + r * kLineHalves, room.largest[at],
              room.total[at], sums + r * room.dims, room.dims);
  }
  int64_t d = 0;
  for (; d + 2 * kLanes <= room.dims; d += 2 * kLanes) {
    multiply_block<2, Rows::kKept>(room.weights, room.values + d / kLanes * kValueColumn, kValueColumn,
                                   count / kPageTokens, false, sums + d, room.dims, nothing);
  }
  if (d < room.dims) {
    multiply_block<1, Rows::kKept>(room.weights, room.values + d / kLanes * kValueColumn, kValueColumn,
                                   count / kPageTokens, false, sums + d, room.dims, nothing);
  }
}

inline void write_rows(const TileAttend& a, const AttendRoom& room) {
  for (int64_t head = 0; head < a.heads; ++head) {
    for (int64_t row = 0; row < a.rows; ++row) {
      const int64_t at = head * a.rows + row;
      const float* sums = room.sums + at * room.dims;
      float* out = a.out + row * a.out_stride + head * a.head_dim;
      for (int64_t d = 0; d < a.head_dim; d += kLanes) {
        const Part y = load(sums + d) / fill(room.total[at]);
        if (a.head_dim - d >= kLanes) {
          store(out + d, y);
        } else {
          store_first(out + d, y, a.head_dim - d);
        }
      }
    }
  }
}

}  // namespace

void attend_tiles(const TileAttend& a) {
  const AttendRoom room(a);
  read_queries(a, room);
  __builtin_memset(room.sums, 0, static_cast<std::size_t>(room.queries * room.dims) * sizeof(float));
  for (int64_t i = 0; i < room.queries; ++i) {
    room.largest[i] = -1e30f;  // below every score, and finite: what is not seen then weighs exp(-infinity)
    room.total[i] = 0;
  }
  configure_tiles();
  const int64_t limit = a.position + a.rows;
  const int64_t begin = a.window > 0 && a.position > a.window ? a.position + 1 - a.window : 0;
  for (int64_t first = begin / kTilePositions * kTilePositions; first < limit; first += kTilePositions) {
    const int64_t end = limit - first < kTilePositions ? limit : first + kTilePositions;
    for (int64_t t = first; t < end; t += kPageTokens) {
      // Of a page that no query sees, which may be gone, the first keys and values seen stand for them: they weigh 0.
      const bool seen = t + kPageTokens > begin;
      unpack_page(a, a.pages[(seen ? t : begin) / kPageTokens], room.keys + (t - first) * room.key_steps * kGroup,
                  room.values + (t - first) / kPageTokens * kTileHalves);
    }
    for (int64_t block = 0; block < room.queries / kTileBlock; ++block) attend_block(a, room, block, first, end);
  }
  release_tiles();
  write_rows(a, room);
}
