// What the tests of attention share: a cache of random positions, and a call whose buffers end at guard pages.
#pragma once

#include <algorithm>
#include <memory>

#include "kernel_cases.h"
#include "kernels/half.h"
#include "plan/cache_shape.h"

namespace cpuinfer {

constexpr CacheType kCacheTypes[] = {CacheType::kF16, CacheType::kInt8, CacheType::kInt4};

inline const char* name_of(CacheType type) {
  return type == CacheType::kF16 ? "f16" : type == CacheType::kInt8 ? "int8" : "int4";
}

// One head in scattered pages, the last of two so that its offsets are not 0; what no position wrote is 0xff: NaN, or
// the largest codes.  Pages end at guard pages.
struct Cache {
  CacheShape shape;
  HeadPlace place;
  std::vector<std::vector<float>> keys, values;  // as they were kept
  std::vector<std::unique_ptr<Guarded<uint8_t>>> storage;
  std::vector<const uint8_t*> pages;

  Cache(CacheType type, int64_t dim, int64_t positions, const KernelSet& set = scalar_set())
      : shape{1, 2, dim, type}, place(shape.place(0, 1)) {
    for (int64_t t = 0; t < positions; t += kPageTokens) {
      storage.push_back(std::make_unique<Guarded<uint8_t>>(static_cast<std::size_t>(shape.page_bytes())));
      std::fill(storage.back()->begin(), storage.back()->end(), uint8_t{0xff});
      pages.push_back(storage.back()->data());
    }
    for (int64_t t = 0; t < positions; ++t) {
      keys.push_back(normals(static_cast<std::size_t>(dim)));
      values.push_back(normals(static_cast<std::size_t>(dim)));
      keep(set, t, keys.back(), values.back());
    }
  }

  void keep(const KernelSet& set, int64_t t, const std::vector<float>& key, const std::vector<float>& value) {
    const Guarded<float> k(key), v(value);
    Guarded<float> scratch(static_cast<std::size_t>((shape.head_dim + kGroup - 1) / kGroup * kGroup));
    Keep task{};
    task.cache = shape.type;
    task.place = place;
    task.page = storage[static_cast<std::size_t>(t / kPageTokens)]->data();
    task.slot = t % kPageTokens;
    task.k = k.data();
    task.v = v.data();
    task.head_dim = shape.head_dim;
    task.scratch = scratch.data();
    set.keep(task);
  }

  const uint8_t* page_of(int64_t t) const { return pages[static_cast<std::size_t>(t / kPageTokens)]; }
  static double half(const uint8_t* page, int64_t offset, int64_t index) {
    uint16_t bits;
    std::memcpy(&bits, page + offset + 2 * index, sizeof bits);
    return half_to_float(bits);
  }
  double scale(int64_t offset, int64_t t, int64_t d) const {
    return shape.type == CacheType::kF16 ? 1 : half(page_of(t), offset, d / kGroup * kPageTokens + t % kPageTokens);
  }
  double key_scale(int64_t t, int64_t d) const { return scale(place.k_scale, t, d); }
  double value_scale(int64_t t, int64_t d) const { return scale(place.v_scale, t, d); }
  // The number that a scale multiplies, less its zero, as kernels.h lays them out.
  double key_code(int64_t t, int64_t d) const {
    const uint8_t* page = page_of(t);
    const int64_t slot = t % kPageTokens, in = d % kGroup;
    if (shape.type == CacheType::kF16) return half(page, place.k, d * kPageTokens + slot);
    const bool nibbles = shape.type == CacheType::kInt4;
    const int64_t group = place.k + d / kGroup * kPageTokens * kGroup / (nibbles ? 2 : 1);
    if (!nibbles) return page[group + (in / 4 * kPageTokens + slot) * 4 + in % 4] - 128;
    const uint8_t pair = page[group + (in % 16 / 4 * kPageTokens + slot) * 4 + in % 4];
    return (in < 16 ? pair & 15 : pair >> 4) - 8;
  }
  double value_code(int64_t t, int64_t d) const {
    const uint8_t* page = page_of(t);
    const int64_t slot = t % kPageTokens, in = d % kGroup;
    if (shape.type == CacheType::kF16) return half(page, place.v, slot * ((shape.head_dim + 15) / 16 * 16) + d);
    const int64_t padded = (shape.head_dim + kGroup - 1) / kGroup * kGroup;
    if (shape.type == CacheType::kInt8) {
      return static_cast<int8_t>(page[place.v + (slot / 4 * padded + d) * 4 + slot % 4]);
    }
    const uint8_t pair = page[place.v + (slot / 4 * padded / 2 + d / kGroup * 16 + in % 16) * 4 + slot % 4];
    return (in < 16 ? pair & 15 : pair >> 4) - 8;
  }
  double key(int64_t t, int64_t d) const { return key_code(t, d) * key_scale(t, d); }
  double value(int64_t t, int64_t d) const { return value_code(t, d) * value_scale(t, d); }
};

// In double; its own inverse.
inline std::vector<double> spread(const std::vector<float>& x) {
  std::vector<double> y(x.begin(), x.end());
  const std::size_t block = y.size() & (~y.size() + 1);
  std::vector<double> out(y.size());
  for (std::size_t i = 0; i < y.size(); ++i) {
    for (std::size_t j = i / block * block; j < i / block * block + block; ++j) {
      const bool odd = __builtin_popcountll((i % block) & (j % block)) % 2;
      out[i] += (odd ? -y[j] : y[j]) / std::sqrt(static_cast<double>(block));
    }
  }
  return out;
}

// A window, a soft cap and a slope, 0 for none.
struct Bends {
  int64_t window = 0;
  float softcap = 0, slope = 0;
};

// The task of rows that see positions up to their limits, and all the memory it needs.
struct Task {
  Attend a{};
  Guarded<float> queries, out, scratch;

  Task(const Cache& cache, const std::vector<float>& q, const std::vector<int64_t>& limits, float scale,
       const Bends& bends)
      : queries(q), out(q.size()), scratch(static_cast<std::size_t>(attend_scratch_floats(cache.shape.head_dim))) {
    std::fill(out.begin(), out.end(), poison());
    std::fill(scratch.begin(), scratch.end(), poison());
    a.rows = static_cast<int>(limits.size());
    a.pages = cache.pages.data();
    a.cache = cache.shape.type;
    a.place = cache.place;
    a.head_dim = cache.shape.head_dim;
    a.scale = scale;
    a.softcap = bends.softcap;
    a.scratch = scratch.data();
    for (int r = 0; r < a.rows; ++r) {
      const int64_t limit = limits[static_cast<std::size_t>(r)];
      a.begin[r] = bends.window ? std::max<int64_t>(0, limit - bends.window) : 0;
      a.limit[r] = limit;
      a.slope[r] = bends.slope * static_cast<float>(r + 1);
      a.q[r] = queries.data() + r * a.head_dim;
      a.out[r] = out.data() + r * a.head_dim;
    }
  }
};

// [rows][head_dim] of attention over the cache.
inline std::vector<float> attend(const KernelSet& set, const Cache& cache, const std::vector<float>& q,
                                 const std::vector<int64_t>& limits, float scale, const Bends& bends = {}) {
  Task task(cache, q, limits, scale, bends);
  set.attend(task.a);
  return {task.out.begin(), task.out.end()};
}

// The same from parts, each segment by itself, in any order, then merged.
inline std::vector<float> attend_by_parts(const KernelSet& set, const Cache& cache, const std::vector<float>& q,
                                          const std::vector<int64_t>& limits, float scale, const Bends& bends = {}) {
  Task task(cache, q, limits, scale, bends);
  Attend& a = task.a;
  const int64_t floats = attend_part_floats(a.head_dim);
  const int64_t segments = (*std::max_element(limits.begin(), limits.end()) + kSegment - 1) / kSegment;
  Guarded<float> parts(static_cast<std::size_t>(a.rows * segments * floats));
  std::fill(parts.begin(), parts.end(), poison());
  for (int64_t segment = segments; segment-- > 0;) {
    for (int r = 0; r < a.rows; ++r) a.part[r] = parts.data() + (r * segments + segment) * floats;
    a.segment = segment;
    set.attend(a);
  }
  for (int r = 0; r < a.rows; ++r) {
    const int64_t first = a.begin[r] / kSegment, end = (a.limit[r] + kSegment - 1) / kSegment;
    Guarded<float> scratch(static_cast<std::size_t>(floats));
    set.merge(
        {parts.data() + (r * segments + first) * floats, end - first, floats, a.head_dim, a.out[r], scratch.data()});
  }
  return {task.out.begin(), task.out.end()};
}

}  // namespace cpuinfer
