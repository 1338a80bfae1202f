// Keys and values in a page: every kernel set writes the bytes of scalar, and they are within half a step of what was
// given.
#include "attend_cases.h"

namespace cpuinfer {
namespace {

constexpr int64_t kPositions = 37;

std::vector<uint8_t> bytes_of(const Cache& cache) {
  std::vector<uint8_t> all;
  for (const uint8_t* page : cache.pages) all.insert(all.end(), page, page + cache.shape.page_bytes());
  return all;
}

// Half a step of the group, its largest magnitude / 127 or 8, whose rounding to fp16 moves a code's value by up to
// 2^-11 of itself and 2^-25 a unit where it is subnormal; of fp16 itself 2^-11, or 2^-25.  The largest code of int4 is
// 7: what is more than 7.5 steps to the other side of the largest is off by what exceeds 7.
void check_kept(const Cache& cache, const std::vector<double>& x, int64_t t, bool key) {
  const bool codes = cache.shape.type != CacheType::kF16;
  const double most = cache.shape.type == CacheType::kInt8 ? 127 : 8;
  for (std::size_t d = 0; d < x.size(); ++d) {
    double largest = 0;
    for (std::size_t i = d / kGroup * kGroup; i < std::min(x.size(), d / kGroup * kGroup + kGroup); ++i) {
      largest = std::max(largest, std::abs(x[i]));
    }
    const double step = codes ? largest / most : 0;
    const double found = key ? cache.key(t, static_cast<int64_t>(d)) : cache.value(t, static_cast<int64_t>(d));
    const double unit = codes ? most : 1;
    const double beyond = cache.shape.type == CacheType::kInt4 ? std::max(0.0, std::abs(x[d]) - 7.5 * step) : 0;
    const double bound = beyond + (step / 2 + 0x1p-11 * (std::abs(x[d]) + step)) * 1.0001 + 0x1p-25 * unit;
    CHECK(std::abs(found - x[d]) <= bound);
  }
}

TEST("keys and values are kept within half a step, keys of int4 spread") {
  for (const CacheType type : kCacheTypes) {
    for (const int64_t dim : {1, 15, 16, 17, 31, 40, 64, 80, 96, 128, 256}) {
      Cache cache(type, dim, kPositions);
      const std::vector<float> tiny(static_cast<std::size_t>(dim), 1e-9f), zero(static_cast<std::size_t>(dim));
      cache.keep(scalar_set(), 3, cache.keys[3] = tiny, cache.values[3] = zero);
      for (int64_t t = 0; t < kPositions; ++t) {
        const std::vector<float>&k = cache.keys[static_cast<std::size_t>(t)],
              &v = cache.values[static_cast<std::size_t>(t)];
        check_kept(cache, type == CacheType::kInt4 ? spread(k) : std::vector<double>(k.begin(), k.end()), t, true);
        check_kept(cache, {v.begin(), v.end()}, t, false);
      }
    }
  }
}

TEST("every set writes the bytes of scalar, and none but those of its positions") {
  for (const CacheType type : kCacheTypes) {
    for (const int64_t dim : {1, 17, 40, 64, 80, 128}) {
      const Cache expected(type, dim, kPositions);
      for (const KernelSet& set : sets_under_test()) {
        Cache found(type, dim, kPositions);
        for (auto& page : found.storage) std::fill(page->begin(), page->end(), uint8_t{0xff});
        for (int64_t t = kPositions; t-- > 0;) {
          found.keep(set, t, expected.keys[static_cast<std::size_t>(t)], expected.values[static_cast<std::size_t>(t)]);
        }
        CHECK(bytes_of(found) == bytes_of(expected));
      }
    }
  }
}

TEST("pages are as large as their parts, and heads lie one behind the other") {
  CHECK_EQ((CacheShape{2, 3, 64, CacheType::kF16}.page_bytes()), int64_t{6 * 32 * 256});
  CHECK_EQ((CacheShape{2, 3, 64, CacheType::kInt8}.page_bytes()), int64_t{6 * 32 * (128 + 8)});
  CHECK_EQ((CacheShape{2, 3, 64, CacheType::kInt4}.page_bytes()), int64_t{6 * 32 * (64 + 8)});
  CHECK_EQ((CacheShape{1, 1, 80, CacheType::kInt8}.page_bytes()), int64_t{32 * (192 + 12)});
  for (const CacheType type : kCacheTypes) {
    const CacheShape shape{2, 3, 80, type};
    CHECK_EQ(shape.place(1, 1).k - shape.place(1, 0).k, shape.head_bytes());
    CHECK_EQ(shape.place(1, 0).k - shape.place(0, 2).k, shape.head_bytes());
    CHECK_EQ(shape.place(1, 2).k + shape.head_bytes(), shape.page_bytes());
  }
}

}  // namespace
}  // namespace cpuinfer

int main() { return check::run_all(); }
