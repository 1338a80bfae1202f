// Attention: every kernel set gives the bits of scalar, scalar is near the real numbers, and what lies beyond a limit
// is never read into a result.
#include "attend_cases.h"

namespace cpuinfer {
namespace {

// The weights of a row's positions in double, and a bound on how far each may be off, relatively.  u = 2^-24.
struct Weights {
  std::vector<double> share;  // [limit]
  double relative = 0;
};

// A score errs by at most e = (dim + 6) u |scale| sum |q k|, with codes also by half a step of the query's group times
// the magnitudes of the key; with int4 the spreading of the query adds a rounding for each of log2(dim) + 1 steps to
// the magnitude of its whole block, 16 u of the largest.  An exponential of a difference of scores errs by the factor
// exp(2 e), the subtraction's u |s - max|, and 3 roundings of its own; merging multiplies by two more exponentials a
// segment; numerator and sum add t + 1 roundings each.
Weights weights_of(const Cache& cache, const std::vector<float>& query, int64_t limit, float scale,
                   const Bends& bends) {
  const double u = 0x1p-24, factor = std::abs(static_cast<double>(scale));
  const int64_t dim = cache.shape.head_dim, begin = bends.window ? std::max<int64_t>(0, limit - bends.window) : 0;
  const bool codes = cache.shape.type != CacheType::kF16;
  const std::vector<double> q =
      cache.shape.type == CacheType::kInt4 ? spread(query) : std::vector<double>(query.begin(), query.end());
  std::vector<double> step(q.size());
  double largest_query = 0;
  for (std::size_t d = 0; d < q.size(); ++d) {
    for (std::size_t i = d / kGroup * kGroup; i < std::min(q.size(), d / kGroup * kGroup + kGroup); ++i) {
      step[d] = std::max(step[d], std::abs(q[i]) / 127);
    }
    largest_query = std::max(largest_query, std::abs(q[d]));
  }
  Weights weights;
  weights.share.resize(static_cast<std::size_t>(limit));
  double most = -1e300, least = 1e300, error = 0, total = 0;
  for (int64_t t = begin; t < limit; ++t) {
    double sum = 0, magnitude = 0, off = 0;
    for (int64_t d = 0; d < dim; ++d) {
      const auto i = static_cast<std::size_t>(d);
      const double key = cache.key(t, d);
      sum += q[i] * key;
      magnitude += std::abs(q[i] * key);
      if (codes) off += (step[i] / 2 * (1 + 64 * u) + 16 * u * largest_query) * std::abs(key);
    }
    double score = sum * static_cast<double>(scale);
    const auto cap = static_cast<double>(bends.softcap);
    if (cap != 0) score = cap * std::tanh(score / cap);
    const double slope = static_cast<double>(bends.slope) * static_cast<double>(t - (limit - 1));
    weights.share[static_cast<std::size_t>(t)] = score + slope;
    most = std::max(most, score + slope);
    least = std::min(least, score + slope);
    error = std::max(
        error, (off + static_cast<double>(dim + 6) * u * magnitude) * factor + 8 * u * cap + 2 * u * std::abs(slope));
  }
  for (int64_t t = begin; t < limit; ++t) {
    double& share = weights.share[static_cast<std::size_t>(t)];
    total += share = std::exp(share - most);
  }
  for (double& share : weights.share) share /= total;
  const double segments = static_cast<double>(limit / kSegment + 1);
  weights.relative =
      2 * (std::expm1(2 * error + 2 * u * (most - least)) + (6 + 12 * segments) * u + static_cast<double>(limit) * u);
  return weights;
}

// With codes each page's weights, times the values' scales, are rounded in steps of their largest / 127.
void check_near_double(const Cache& cache, const std::vector<float>& query, int64_t limit, float scale,
                       const float* got, const Bends& bends = {}) {
  const Weights weights = weights_of(cache, query, limit, scale, bends);
  const bool codes = cache.shape.type != CacheType::kF16;
  double worst = 0;
  for (int64_t d = 0; d < cache.shape.head_dim; ++d) {
    double sum = 0, magnitude = 0, off = 0;
    for (int64_t page = 0; page < limit; page += kPageTokens) {
      double largest = 0, code_sum = 0;
      for (int64_t t = page; t < std::min(limit, page + kPageTokens); ++t) {
        const double share = weights.share[static_cast<std::size_t>(t)];
        sum += share * cache.value(t, d);
        magnitude += share * std::abs(cache.value(t, d));
        if (codes) largest = std::max(largest, share * std::abs(cache.value_scale(t, d)));
        if (share > 0) code_sum += std::abs(cache.value_code(t, d));
      }
      off += largest / 254 * (1 + weights.relative) * code_sum;
    }
    worst = std::max(worst, std::abs(static_cast<double>(got[d]) - sum) -
                                (weights.relative * magnitude * 1.01 + off * 1.001 + 1e-40));
  }
  CHECK(worst <= 0);
}

std::vector<float> row_of(const std::vector<float>& q, std::size_t row, int64_t dim) {
  const auto at = q.begin() + static_cast<int64_t>(row) * dim;
  return {at, at + dim};
}

TEST("attention of every set has the bits of scalar, which is near the real numbers") {
  for (const CacheType type : kCacheTypes) {
    for (const int64_t dim : {1, 15, 17, 40, 64, 80, 86, 128, 256}) {
      for (const int64_t limit : {1, 2, 15, 16, 17, 31, 32, 33, 100}) {
        const Cache cache(type, dim, limit);
        for (const int rows : {1, 2, 3, 4, 5, 7, 8}) {
          const std::vector<float> q = normals(static_cast<std::size_t>(rows * dim), 2.0f);
          std::vector<int64_t> limits;  // as in a prompt: each row sees one position less
          for (int r = 0; r < rows; ++r) limits.push_back(std::max<int64_t>(1, limit - r));
          const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
          const std::vector<float> expected = attend(scalar_set(), cache, q, limits, scale);
          for (std::size_t r = 0; r < limits.size(); ++r) {
            check_near_double(cache, row_of(q, r, dim), limits[r], scale,
                              expected.data() + static_cast<int64_t>(r) * dim);
          }
          for (const KernelSet& set : sets_under_test()) {
            check_same(attend(set, cache, q, limits, scale).data(), expected.data(), expected.size(),
                       std::string(set.name) + " " + name_of(type) + " dim=" + std::to_string(dim) +
                           " limit=" + std::to_string(limit) + " rows=" + std::to_string(rows));
          }
        }
      }
    }
  }
}

TEST("many segments give the same bits whoever computes which, and are near the real numbers") {
  for (const CacheType type : kCacheTypes) {
    for (const int64_t dim : {40, 64}) {
      const Cache cache(type, dim, 1700);
      for (const Bends& bends : {Bends{}, Bends{700}, Bends{512}, Bends{1100, 20.0f, 0.001f}}) {
        const std::vector<int64_t> limits = {1, 512, 513, 1024, 1025, 1600, 1700, 511};
        const std::vector<float> q = normals(limits.size() * static_cast<std::size_t>(dim), 2.0f);
        const std::vector<float> expected = attend(scalar_set(), cache, q, limits, 0.125f, bends);
        const std::string what = std::string(name_of(type)) + " dim=" + std::to_string(dim);
        check_same(attend_by_parts(scalar_set(), cache, q, limits, 0.125f, bends).data(), expected.data(),
                   expected.size(), "scalar by parts " + what);
        for (std::size_t r = 0; r < limits.size(); ++r) {
          const Bends own{bends.window, bends.softcap, bends.slope * static_cast<float>(r + 1)};
          check_near_double(cache, row_of(q, r, dim), limits[r], 0.125f,
                            expected.data() + static_cast<int64_t>(r) * dim, own);
        }
        for (const KernelSet& set : sets_under_test()) {
          check_same(attend(set, cache, q, limits, 0.125f, bends).data(), expected.data(), expected.size(),
                     std::string(set.name) + " " + what);
          check_same(attend_by_parts(set, cache, q, limits, 0.125f, bends).data(), expected.data(), expected.size(),
                     std::string(set.name) + " by parts " + what);
        }
      }
    }
  }
}

TEST("windows, soft caps and slopes: every set has the bits of scalar, alone as together, near the real numbers") {
  for (const CacheType type : kCacheTypes) {
    for (const int64_t dim : {17, 80}) {
      const Cache cache(type, dim, 150);
      for (const Bends& bends : {Bends{}, Bends{1}, Bends{33}, Bends{64, 20.0f}, Bends{0, 5.0f}, Bends{0, 0, 0.3f},
                                 Bends{40, 10.0f, 0.02f}, Bends{1000}}) {
        const std::vector<int64_t> limits = {1, 150, 33, 97, 96, 64, 32, 2};
        const std::vector<float> q = normals(limits.size() * static_cast<std::size_t>(dim));
        const std::vector<float> expected = attend(scalar_set(), cache, q, limits, 0.25f, bends);
        for (const KernelSet& set : sets_under_test()) {
          check_same(attend(set, cache, q, limits, 0.25f, bends).data(), expected.data(), expected.size(), set.name);
        }
        const std::vector<float> first = row_of(q, 0, dim);
        for (const int64_t limit : {1, 31, 33, 150}) {
          const std::vector<float> alone = attend(scalar_set(), cache, first, {limit}, 0.25f, bends);
          check_near_double(cache, first, limit, 0.25f, alone.data(), bends);
        }
        if (bends.slope != 0) continue;  // which differs by row
        for (std::size_t r = 0; r < limits.size(); ++r) {
          check_same(attend(sets_under_test().empty() ? scalar_set() : sets_under_test()[0], cache, row_of(q, r, dim),
                            {limits[r]}, 0.25f, bends)
                         .data(),
                     expected.data() + static_cast<int64_t>(r) * dim, static_cast<std::size_t>(dim), "row alone");
        }
      }
    }
  }
}

TEST("scores far apart give the value of the largest one, and a NaN query gives NaN") {
  for (const CacheType type : kCacheTypes) {
    Cache cache(type, 64, 50);
    std::vector<float> key(64, 0.0f);
    for (std::size_t d = 0; d < 64; d += 2) key[d] = 1e4f;
    for (int64_t t = 0; t < 50; ++t) cache.keep(scalar_set(), t, t == 20 ? key : std::vector<float>(64, 0.1f), key);
    const std::vector<float> best = normals(64);
    cache.keep(scalar_set(), 20, key, best);
    const std::vector<float> q(64, 1.0f);
    for (const KernelSet& set : kernel_sets()) {
      if (!missing_for(set, cpu_info()).empty()) continue;
      const std::vector<float> out = attend(set, cache, q, {50}, 1.0f);
      for (int64_t d = 0; d < 64; ++d) {  // the value's scale comes by way of one division and one product
        const double value = cache.value(20, d);
        CHECK(std::abs(static_cast<double>(out[static_cast<std::size_t>(d)]) - value) <= 0x1p-22 * std::abs(value));
      }
      std::vector<float> broken = q;
      broken[3] = poison();
      for (const float value : attend(set, cache, broken, {50}, 1.0f)) CHECK(std::isnan(value));
    }
  }
}

TEST("a key or value with NaN or infinity gives NaN where it is seen, and nothing where it is not") {
  for (const CacheType type : {CacheType::kInt8, CacheType::kInt4}) {
    Cache cache(type, 64, 50);
    const std::vector<float> q = normals(64), good = normals(64);
    std::vector<float> bad = good;
    bad[7] = std::numeric_limits<float>::infinity();
    for (const bool in_key : {true, false}) {
      cache.keep(scalar_set(), 40, in_key ? bad : good, in_key ? good : bad);
      for (const KernelSet& set : kernel_sets()) {
        if (!missing_for(set, cpu_info()).empty()) continue;
        CHECK(std::isnan(attend(set, cache, q, {50}, 1.0f)[7]));
        CHECK(std::isfinite(attend(set, cache, q, {40}, 1.0f)[7]));
        CHECK(std::isfinite(attend(set, cache, q, {50}, 1.0f, Bends{9})[7]));
      }
    }
  }
}

}  // namespace
}  // namespace cpuinfer

int main() { return check::run_all(); }
