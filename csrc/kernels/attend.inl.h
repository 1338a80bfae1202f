// Body of attention over paged fp16 keys and values, written once over the including file's parts.
// Included inside that file's namespace, after gemm.inl.h.  What lies beyond a row's limit is never multiplied in.

namespace {

inline int64_t round_up_to_lanes(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// scores[row][t ...] = scale * q k for kColumns parts of positions from t on, all in one page.
template <int kRows, int kColumns>
inline void score_positions(const Attend& a, int first_row, int64_t t) {
  const uint16_t* k = a.pages[t / kPageTokens] + a.k_offset + t % kPageTokens;
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
    float* scores = a.scores + (first_row + r) * a.scores_stride + t;
    for (int c = 0; c < kColumns; ++c) store(scores + c * kPartLanes, fill(a.scale) * sum[r][c]);
  }
}

// Soft cap and slope of a row's scores; `lanes` are 0, 1, ... 15.
inline void bend_scores(const Attend& a, int row, float* scores, int64_t first, int64_t end) {
  float lanes[kLanes];
  for (int l = 0; l < kLanes; ++l) lanes[l] = static_cast<float>(l);
  if (a.softcap != 0) softcap(a.softcap, end - first, scores + first);
  if (a.slope[row] == 0) return;
  for (int64_t t = first; t < end; t += kLanes) {
    const Part distance = fill(static_cast<float>(t - (a.limit[row] - 1)));  // of lane 0; exact below 2^24
    for (int p = 0; p < kParts; ++p) {
      float* at = scores + t + p * kPartLanes;
      store(at, fused(fill(a.slope[row]), distance + load(lanes + p * kPartLanes), load(at)));
    }
  }
}

// scores[begin, limit) -> exp(score - largest); returns their sum.  Other scores from `first`, a multiple of 16, to the
// next multiple of 16 become 0.
inline float exponentials(float* scores, int64_t first, int64_t begin, int64_t limit) {
  const int64_t end = round_up_to_lanes(limit);
  for (int64_t t = first; t < begin; ++t) scores[t] = -__builtin_inff();
  for (int64_t t = limit; t < end; ++t) scores[t] = -__builtin_inff();
  Part largest[kParts], sums[kParts];
  for (int p = 0; p < kParts; ++p) {
    largest[p] = load(scores + first + p * kPartLanes);
    sums[p] = fill(0.0f);
  }
  for (int64_t t = first + kLanes; t < end; t += kLanes) {
    for (int p = 0; p < kParts; ++p) largest[p] = larger(largest[p], load(scores + t + p * kPartLanes));
  }
  const Part shift = fill(largest_lane(largest));
  for (int64_t t = first; t < end; t += kLanes) {
    for (int p = 0; p < kParts; ++p) {
      float* at = scores + t + p * kPartLanes;
      const Part weight = exponential(load(at) - shift);
      store(at, weight);
      sums[p] = sums[p] + weight;
    }
  }
  return sum_lanes(sums);
}

// sum[r] += p[r][t] v[t] for t in [begin, end), kColumns parts of the head from dimension d on.
template <int kRows, int kColumns>
inline void add_values(const Attend& a, int first_row, int64_t d, int64_t begin, int64_t end,
                       Part (&sum)[kRows][kColumns]) {
  const int64_t stride = round_up_to_lanes(a.head_dim);
  const float* scores = a.scores + first_row * a.scores_stride;
  for (int64_t t = begin; t < end;) {
    const int64_t slot = t % kPageTokens;
    const uint16_t* v = a.pages[t / kPageTokens] + a.v_offset + slot * stride + d;
    const int64_t page_end = t - slot + kPageTokens;
    for (const int64_t stop = page_end < end ? page_end : end; t < stop; ++t, v += stride) {
#pragma GCC unroll 2
      for (int c = 0; c < kColumns; ++c) {
        const Part values = load_half(v + c * kPartLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          sum[r][c] = fused(fill(scores[r * a.scores_stride + t]), values, sum[r][c]);
        }
      }
    }
  }
}

// out[row][d ...] for kColumns parts of the head; positions every row sees are read once for all of them.
template <int kRows, int kColumns>
inline void weigh_values(const Attend& a, int first_row, int64_t first, int64_t d, const float (&total)[kRows]) {
  int64_t shared = a.limit[first_row];
  for (int r = 1; r < kRows; ++r) shared = a.limit[first_row + r] < shared ? a.limit[first_row + r] : shared;
  Part sum[kRows][kColumns];
  for (auto& row : sum) {
    for (Part& part : row) part = fill(0.0f);
  }
  add_values<kRows, kColumns>(a, first_row, d, first, shared, sum);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const int row = first_row + r;
    Part one[1][kColumns];
    for (int c = 0; c < kColumns; ++c) one[0][c] = sum[r][c];
    add_values<1, kColumns>(a, row, d, shared, a.limit[row], one);
    for (int c = 0; c < kColumns; ++c) {
      const int64_t at = d + c * kPartLanes, left = a.head_dim - at;
      const Part out = one[0][c] / fill(total[r]);
      if (left >= kPartLanes)
        store(a.out[row] + at, out);
      else if (left > 0)
        store_first(a.out[row] + at, out, left);
    }
  }
}

template <int kRows>
void attend_rows(const Attend& a, int first_row) {
  int64_t first = a.begin[first_row], end = 0;
  for (int r = first_row; r < first_row + kRows; ++r) {
    first = a.begin[r] < first ? a.begin[r] : first;
    end = a.limit[r] > end ? a.limit[r] : end;
  }
  first = first / kPageTokens * kPageTokens;
  end = round_up_to_lanes(end);
  // Blocks of two parts start at multiples of their size, which divides a page, so none crosses into the next page.
  constexpr int64_t kTwo = 2 * kPartLanes;
  int64_t t = first;
  for (; t + kTwo <= end; t += kTwo) score_positions<kRows, 2>(a, first_row, t);
  if (t < end) score_positions<kRows, 1>(a, first_row, t);
  float total[kRows];
  for (int r = 0; r < kRows; ++r) {
    const int row = first_row + r;
    float* scores = a.scores + row * a.scores_stride;
    if (a.softcap != 0 || a.slope[row] != 0) bend_scores(a, row, scores, first, round_up_to_lanes(a.limit[row]));
    total[r] = exponentials(scores, first, a.begin[row], a.limit[row]);
  }
  const int64_t padded = round_up_to_lanes(a.head_dim);
  int64_t d = 0;
  for (; d + kTwo <= padded; d += kTwo) weigh_values<kRows, 2>(a, first_row, first, d, total);
  if (d < padded) weigh_values<kRows, 1>(a, first_row, first, d, total);
}

}  // namespace

void attend(const Attend& a) {
  in_blocks<kFloatRows>(a.rows, [&](auto rows, int first_row) { attend_rows<decltype(rows)::value>(a, first_row); });
}
