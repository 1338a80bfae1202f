// Scores and weighted values of fp16 keys and values, written once over the including file's parts.
// Included inside that file's namespace, after gemm.inl.h.

namespace {

inline int64_t round_up_to_lanes(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Asks for `bytes` of a page to come: runs of a page are too short for the processor to fetch ahead by itself.
inline void fetch_ahead(const uint8_t* p, int64_t bytes) {
  for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(p + line);
}

// Of Attend::scratch.
inline float* row_scores(const Attend& a, int row) { return a.scratch + row * kSegment; }
inline float* part_of(const Attend& a, int row) {  // values, largest and sum of the segment at hand
  return a.scratch + kTileRows * kSegment + row * attend_part_floats(a.head_dim);
}
inline float* whole_of(const Attend& a, int row) { return part_of(a, kTileRows + row); }  // of those before
inline float* query_scratch(const Attend& a) { return part_of(a, 2 * kTileRows); }

// Keys and values as fp16.
struct HalfCache {
  static constexpr int kRows = kFloatRows;

  static int64_t key_bytes(const Attend& a) { return a.head_dim * kPageTokens * 2; }
  static int64_t value_bytes(const Attend& a) { return round_up_to_lanes(a.head_dim) * kPageTokens * 2; }

  template <int kRows>
  static void read_queries(const Attend&, int) {}

  // scores[row][t ...] = q k for kColumns parts of positions of a page.
  template <int kRows, int kColumns>
  static void score_part(const Attend& a, int first_row, const uint16_t* k, int64_t score) {
    Part sum[kRows][kColumns];
    for (auto& row : sum) {
      for (Part& part : row) part = fill(0.0f);
    }
    for (int64_t d = 0; d < a.head_dim; ++d, k += kPageTokens) {
#pragma GCC unroll 2
      for (int c = 0; c < kColumns; ++c) {
        const Part keys = load_half(k + c * kPartLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) sum[r][c] = fused(fill(a.q[first_row + r][d]), keys, sum[r][c]);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      float* scores = row_scores(a, first_row + r) + score;
      for (int c = 0; c < kColumns; ++c) store(scores + c * kPartLanes, fill(a.scale) * sum[r][c]);
    }
  }

  // Of a page's first `count` positions at least; `score` is where its first one's score is.
  template <int kRows>
  static void score_page(const Attend& a, int first_row, const uint8_t* page, int64_t score, int64_t count) {
    const uint16_t* k = halves(page + a.place.k);
    constexpr int kTwo = 2 * kPartLanes;
    for (int t = 0; t < kPageTokens && t < count; t += kTwo) {
      score_part<kRows, 2>(a, first_row, k + t, score + t);
    }
  }

  // part[row][d ...] += p[row][t] v[t] for kColumns parts of the head and the page's positions [begin, end).
  template <int kRows, int kColumns>
  static void add_part(const Attend& a, int first_row, const uint16_t* v, int64_t score, int64_t begin, int64_t end,
                       int64_t d) {
    const int64_t stride = round_up_to_lanes(a.head_dim);
    Part sum[kRows][kColumns];
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kColumns; ++c) sum[r][c] = load(part_of(a, first_row + r) + d + c * kPartLanes);
    }
    for (int64_t t = begin; t < end; ++t) {
#pragma GCC unroll 2
      for (int c = 0; c < kColumns; ++c) {
        const Part values = load_half(v + t * stride + d + c * kPartLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          sum[r][c] = fused(fill(row_scores(a, first_row + r)[score + t]), values, sum[r][c]);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kColumns; ++c) store(part_of(a, first_row + r) + d + c * kPartLanes, sum[r][c]);
    }
  }

  template <int kRows>
  static void add_page(const Attend& a, int first_row, const uint8_t* page, int64_t score, int64_t begin, int64_t end) {
    const uint16_t* v = halves(page + a.place.v);
    const int64_t padded = round_up_to_lanes(a.head_dim);
    int64_t d = 0;
    for (; d + 2 * kPartLanes <= padded; d += 2 * kPartLanes) {
      add_part<kRows, 2>(a, first_row, v, score, begin, end, d);
    }
    if (d < padded) add_part<kRows, 1>(a, first_row, v, score, begin, end, d);
  }

  static void keep(const Keep& k) {
    constexpr int64_t kPiece = 64;  // of a key, converted at once
    uint16_t half[kPiece];
    uint8_t* page = k.page + k.place.k;
    for (int64_t d = 0; d < k.head_dim; d += kPiece) {
      const int64_t count = k.head_dim - d < kPiece ? k.head_dim - d : kPiece;
      to_half(k.k + d, count, half);
      for (int64_t i = 0; i < count; ++i) {
        __builtin_memcpy(page + ((d + i) * kPageTokens + k.slot) * 2, half + i, sizeof half[i]);
      }
    }
    uint8_t* v = k.page + k.place.v + k.slot * round_up_to_lanes(k.head_dim) * 2;
    to_half(k.v, k.head_dim, reinterpret_cast<uint16_t*>(v));
  }
};

}  // namespace
