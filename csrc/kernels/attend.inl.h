// Body of attention over a paged cache, segment by segment, written once over the including file's parts.
// Included inside that file's namespace, after the kinds of cache.  What lies beyond a row's limit is never multiplied
// in.

namespace {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Soft cap and slope of a row's scores of the `count` positions from t on; `lanes` are 0, 1, ... 15.
inline void bend_scores(const Attend& a, int row, float* scores, int64_t t, int64_t count) {
  float lanes[kLanes];
  for (int l = 0; l < kLanes; ++l) lanes[l] = static_cast<float>(l);
  if (a.softcap != 0) softcap(a.softcap, count, scores);
  if (a.slope[row] == 0) return;
  for (int64_t i = 0; i < count; i += kLanes) {
    const Part distance = fill(static_cast<float>(t + i - (a.limit[row] - 1)));  // of lane 0; exact below 2^24
    for (int p = 0; p < kParts; ++p) {
      float* at = scores + i + p * kPartLanes;
      store(at, fused(fill(a.slope[row]), distance + load(lanes + p * kPartLanes), load(at)));
    }
  }
}

// scores[begin, limit) -> exp(score - largest); part gets largest and sum.  Other scores of their 16 become 0.
inline void exponentials(float* scores, int64_t begin, int64_t limit, float* part) {
  const int64_t first = begin / kLanes * kLanes, end = round_up_to_lanes(limit);
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
  part[0] = largest_lane(largest);
  const Part shift = fill(part[0]);
  for (int64_t t = first; t < end; t += kLanes) {
    for (int p = 0; p < kParts; ++p) {
      float* at = scores + t + p * kPartLanes;
      const Part weight = exponential(load(at) - shift);
      store(at, weight);
      sums[p] = sums[p] + weight;
    }
  }
  part[1] = sum_lanes(sums);
}

// Positions of a segment, from its start on, that a row sees: [begin, end); empty if begin >= end.
struct Seen {
  int64_t begin, end;
};
inline Seen seen_by(const Attend& a, int row, int64_t start) {
  return {most(a.begin[row] - start, 0), least(a.limit[row] - start, kSegment)};
}

template <int kRows>
inline Seen seen_by_any(const Seen (&seen)[kRows]) {
  Seen all{kSegment, 0};
  for (const Seen& one : seen) {
    if (one.begin < one.end) all = {least(all.begin, one.begin), most(all.end, one.end)};
  }
  return all;
}

// whole: the values of a head in the first `padded` floats, then largest and sum; takes in the next segment's.
inline void merge_part(const float* part, int64_t padded, float* whole) {
  const float* from = part + padded;
  float* to = whole + padded;
  const float largest = to[0] > from[0] ? to[0] : from[0];
  Part shifts[kParts];
  float lanes[kLanes] = {to[0] - largest, from[0] - largest};
  for (int p = 0; p < kParts; ++p) {
    shifts[p] = exponential(load(lanes + p * kPartLanes));
    store(lanes + p * kPartLanes, shifts[p]);
  }
  const Part before = fill(lanes[0]), after = fill(lanes[1]);
  to[0] = largest;
  to[1] = __builtin_fmaf(from[1], lanes[1], to[1] * lanes[0]);
  for (int64_t d = 0; d < padded; d += kPartLanes) {
    store(whole + d, fused(load(part + d), after, load(whole + d) * before));
  }
}

inline void finish_row(const float* whole, int64_t padded, int64_t head_dim, float* out) {
  const Part total = fill(whole[padded + 1]);
  for (int64_t d = 0; d < head_dim; d += kPartLanes) {
    const Part value = load(whole + d) / total;
    if (head_dim - d >= kPartLanes)
      store(out + d, value);
    else
      store_first(out + d, value, head_dim - d);
  }
}

// Scores of the segment's pages that any row sees, then each row's exponentials.
template <typename Cache, int kRows>
void score_segment(const Attend& a, int first_row, int64_t start, const Seen (&seen)[kRows]) {
  const Seen all = seen_by_any<kRows>(seen);
  const uint8_t* const* pages = a.pages + start / kPageTokens;
  const int64_t last = (all.end - 1) / kPageTokens;
  for (int64_t page = all.begin / kPageTokens; page <= last; ++page) {
    const uint8_t* next = page < last ? pages[page + 1] + a.place.k : pages[all.begin / kPageTokens] + a.place.v;
    fetch_ahead(next, page < last ? Cache::key_bytes(a) : Cache::value_bytes(a));
    Cache::template score_page<kRows>(a, first_row, pages[page], page * kPageTokens, all.end - page * kPageTokens);
  }
  for (int r = 0; r < kRows; ++r) {
    const int row = first_row + r;
    if (seen[r].begin >= seen[r].end) continue;
    float* scores = row_scores(a, row);
    const int64_t first = seen[r].begin / kLanes * kLanes;
    if (a.softcap != 0 || a.slope[row] != 0) {
      bend_scores(a, row, scores + first, start + first, round_up_to_lanes(seen[r].end) - first);
    }
    exponentials(scores, seen[r].begin, seen[r].end, part_of(a, row) + round_up_to_groups(a.head_dim));
  }
}

// The segment's values, weighed; pages that every row sees alike are read once for all of them.
template <typename Cache, int kRows>
void weigh_segment(const Attend& a, int first_row, int64_t start, const Seen (&seen)[kRows], const uint8_t* following) {
  const Seen all = seen_by_any<kRows>(seen);
  const int64_t padded = round_up_to_groups(a.head_dim);
  for (int r = 0; r < kRows; ++r) {
    for (int64_t d = 0; d < padded; d += kPartLanes) store(part_of(a, first_row + r) + d, fill(0.0f));
  }
  const uint8_t* const* pages = a.pages + start / kPageTokens;
  const int64_t last = (all.end - 1) / kPageTokens;
  for (int64_t page = all.begin / kPageTokens; page <= last; ++page) {
    const int64_t score = page * kPageTokens;
    if (page < last)
      fetch_ahead(pages[page + 1] + a.place.v, Cache::value_bytes(a));
    else if (following != nullptr)
      fetch_ahead(following + a.place.k, Cache::key_bytes(a));
    Seen part[kRows];
    bool alike = true;
    for (int r = 0; r < kRows; ++r) {
      part[r] = {most(seen[r].begin - score, 0), least(seen[r].end - score, kPageTokens)};
      alike = alike && part[r].begin == part[0].begin && part[r].end == part[0].end;
    }
    if (alike && part[0].begin < part[0].end) {
      Cache::template add_page<kRows>(a, first_row, pages[page], score, part[0].begin, part[0].end);
      continue;
    }
    for (int r = 0; r < kRows; ++r) {
      if (part[r].begin >= part[r].end) continue;
      Cache::template add_page<1>(a, first_row + r, pages[page], score, part[r].begin, part[r].end);
    }
  }
}

template <typename Cache, int kRows>
void attend_segment(const Attend& a, int first_row, int64_t segment, const uint8_t* following) {
  const int64_t start = segment * kSegment, floats = attend_part_floats(a.head_dim);
  Seen seen[kRows];
  for (int r = 0; r < kRows; ++r) seen[r] = seen_by(a, first_row + r, start);
  score_segment<Cache, kRows>(a, first_row, start, seen);
  weigh_segment<Cache, kRows>(a, first_row, start, seen, following);
  for (int r = 0; r < kRows; ++r) {
    const int row = first_row + r;
    if (seen[r].begin >= seen[r].end) continue;
    const bool alone = a.part[row] != nullptr;
    if (alone || segment == a.begin[row] / kSegment)
      __builtin_memcpy(alone ? a.part[row] : whole_of(a, row), part_of(a, row),
                       static_cast<__SIZE_TYPE__>(floats) * sizeof(float));
    else
      merge_part(part_of(a, row), round_up_to_groups(a.head_dim), whole_of(a, row));
  }
}

template <typename Cache, int kRows>
void attend_rows(const Attend& a, int first_row) {
  int64_t first = a.begin[first_row], end = 0;
  for (int r = first_row; r < first_row + kRows; ++r) {
    first = least(a.begin[r], first);
    end = most(a.limit[r], end);
  }
  Cache::template read_queries<kRows>(a, first_row);
  if (a.part[first_row] != nullptr) return attend_segment<Cache, kRows>(a, first_row, a.segment, nullptr);
  const int64_t last = (end - 1) / kSegment;
  for (int64_t segment = first / kSegment; segment <= last; ++segment) {
    const uint8_t* following = segment < last ? a.pages[(segment + 1) * (kSegment / kPageTokens)] : nullptr;
    attend_segment<Cache, kRows>(a, first_row, segment, following);
  }
  for (int r = first_row; r < first_row + kRows; ++r) {
    finish_row(whole_of(a, r), round_up_to_groups(a.head_dim), a.head_dim, a.out[r]);
  }
}

template <typename Cache>
void attend_cache(const Attend& a) {
  in_blocks<Cache::kRows>(a.rows,
                          [&](auto rows, int first_row) { attend_rows<Cache, decltype(rows)::value>(a, first_row); });
}

}  // namespace

void keep(const Keep& k) {
  switch (k.cache) {
    case CacheType::kF16: return HalfCache::keep(k);
    case CacheType::kInt8: return ByteCache::keep(k);
    case CacheType::kInt4: return NibbleCache::keep(k);
  }
}

void attend(const Attend& a) {
  switch (a.cache) {
    case CacheType::kF16: return attend_cache<HalfCache>(a);
    case CacheType::kInt8: return attend_cache<ByteCache>(a);
    case CacheType::kInt4: return attend_cache<NibbleCache>(a);
  }
}

void merge(const MergeParts& m) {
  const int64_t padded = round_up_to_groups(m.head_dim);
  __builtin_memcpy(m.scratch, m.parts, static_cast<__SIZE_TYPE__>(attend_part_floats(m.head_dim)) * sizeof(float));
  for (int64_t i = 1; i < m.count; ++i) merge_part(m.parts + i * m.stride, padded, m.scratch);
  finish_row(m.scratch, padded, m.head_dim, m.out);
}
