// Attention: every kernel set gives the bits of scalar, scalar is near the real numbers, and what lies beyond a limit
// is never read into a result.
#include <algorithm>

#include "kernel_cases.h"
#include "kernels/half.h"

namespace cpuinfer {
namespace {

constexpr uint16_t kHalfNan = 0x7e00;

int64_t round_up(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// A cache of `positions` random positions in scattered pages, NaN beyond them and in the padding of V.
struct Cache {
  int64_t head_dim, stride, k_offset = 8, v_offset;
  std::vector<std::vector<uint16_t>> storage;
  std::vector<const uint16_t*> pages;

  Cache(int64_t dim, int64_t positions)
      : head_dim(dim), stride(round_up(dim)), v_offset(k_offset + dim * kPageTokens + 16) {
    const int64_t count = (positions + kPageTokens - 1) / kPageTokens;
    for (int64_t p = 0; p < count; ++p) {
      storage.emplace_back(static_cast<std::size_t>(v_offset + kPageTokens * stride), kHalfNan);
    }
    for (int64_t t = 0; t < positions; ++t) {
      for (int64_t d = 0; d < dim; ++d) {
        storage[static_cast<std::size_t>(t / kPageTokens)][key_at(t, d)] = float_to_half(normal());
        storage[static_cast<std::size_t>(t / kPageTokens)][value_at(t, d)] = float_to_half(normal());
      }
    }
    for (const auto& page : storage) pages.push_back(page.data());
  }
  std::size_t key_at(int64_t t, int64_t d) const {
    return static_cast<std::size_t>(k_offset + d * kPageTokens + t % kPageTokens);
  }
  std::size_t value_at(int64_t t, int64_t d) const {
    return static_cast<std::size_t>(v_offset + t % kPageTokens * stride + d);
  }
  double key(int64_t t, int64_t d) const {
    return half_to_float(pages[static_cast<std::size_t>(t / kPageTokens)][key_at(t, d)]);
  }
  double value(int64_t t, int64_t d) const {
    return half_to_float(pages[static_cast<std::size_t>(t / kPageTokens)][value_at(t, d)]);
  }
};

// [rows][head_dim] of attention over the cache; queries, outputs and scores end at guard pages.
// `bends` has a window, a soft cap and a slope, 0 for none.
struct Bends {
  int64_t window = 0;
  float softcap = 0, slope = 0;
};
std::vector<float> attend(const KernelSet& set, const Cache& cache, const std::vector<float>& q,
                          const std::vector<int64_t>& limits, float scale, const Bends& bends = {}) {
  const int64_t dim = cache.head_dim;
  const auto rows = static_cast<int>(limits.size());
  const Guarded<float> queries(q);
  Guarded<float> out(q.size());
  std::fill(out.begin(), out.end(), poison());
  const int64_t stride = round_up(*std::max_element(limits.begin(), limits.end()));
  Guarded<float> scores(static_cast<std::size_t>(rows * stride));
  std::fill(scores.begin(), scores.end(), poison());
  Attend a{};
  a.rows = rows;
  a.pages = cache.pages.data();
  a.k_offset = cache.k_offset;
  a.v_offset = cache.v_offset;
  a.head_dim = dim;
  a.scale = scale;
  a.softcap = bends.softcap;
  a.scores = scores.data();
  a.scores_stride = stride;
  for (int r = 0; r < rows; ++r) {
    const int64_t limit = limits[static_cast<std::size_t>(r)];
    a.begin[r] = bends.window ? std::max<int64_t>(0, limit - bends.window) : 0;
    a.slope[r] = bends.slope * static_cast<float>(r + 1);
    a.q[r] = queries.data() + r * dim;
    a.out[r] = out.data() + r * dim;
    a.limit[r] = limits[static_cast<std::size_t>(r)];
  }
  set.attend(a);
  return {out.begin(), out.end()};
}

// The same in double, with a bound on what fp32 may differ.  u = 2^-24.  A score errs by at most
// e = (dim + 2) u |scale| sum |q k|; an exponential of a difference of scores by the factor exp(2 e) and 3 roundings of
// its own (its 1.6 units, the subtraction's u |s - max| counted in e); numerator and sum add t + 1 roundings each.
void check_near_double(const Cache& cache, const std::vector<float>& q, const std::vector<int64_t>& limits, float scale,
                       const std::vector<float>& got) {
  const double u = 0x1p-24;
  const int64_t dim = cache.head_dim;
  for (std::size_t r = 0; r < limits.size(); ++r) {
    std::vector<double> score(static_cast<std::size_t>(limits[r])), error(score.size());
    for (int64_t t = 0; t < limits[r]; ++t) {
      double sum = 0, magnitude = 0;
      for (int64_t d = 0; d < dim; ++d) {
        const double term =
            static_cast<double>(q[r * static_cast<std::size_t>(dim) + static_cast<std::size_t>(d)]) * cache.key(t, d);
        sum += term;
        magnitude += std::abs(term);
      }
      score[static_cast<std::size_t>(t)] = sum * static_cast<double>(scale);
      error[static_cast<std::size_t>(t)] =
          static_cast<double>(dim + 2) * u * magnitude * static_cast<double>(std::abs(scale));
    }
    const double largest = *std::max_element(score.begin(), score.end());
    const double least = *std::min_element(score.begin(), score.end());
    const double off = 2 * *std::max_element(error.begin(), error.end()) + u * (largest - least);
    const double relative = 2 * (std::expm1(off) + (6 + static_cast<double>(limits[r])) * u);
    double total = 0;
    for (const double s : score) total += std::exp(s - largest);
    for (int64_t d = 0; d < dim; ++d) {
      double sum = 0, magnitude = 0;
      for (int64_t t = 0; t < limits[r]; ++t) {
        const double weight = std::exp(score[static_cast<std::size_t>(t)] - largest) / total;
        sum += weight * cache.value(t, d);
        magnitude += weight * std::abs(cache.value(t, d));
      }
      const double value = got[r * static_cast<std::size_t>(dim) + static_cast<std::size_t>(d)];
      CHECK(std::abs(value - sum) <= relative * magnitude * 1.01 + 1e-40);
    }
  }
}

TEST("attention of every set has the bits of scalar, which is near the real numbers") {
  for (const int64_t dim : {1, 8, 15, 17, 64, 80, 86, 96, 128}) {
    for (const int64_t limit : {1, 2, 15, 16, 17, 31, 32, 33, 100}) {
      const Cache cache(dim, limit);
      for (const int rows : {1, 2, 3, 4, 5, 7, 8}) {
        const std::vector<float> q = normals(static_cast<std::size_t>(rows * dim), 2.0f);
        std::vector<int64_t> limits;  // as in a prompt: each row sees one position less
        for (int r = 0; r < rows; ++r) limits.push_back(std::max<int64_t>(1, limit - r));
        const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
        const std::vector<float> expected = attend(scalar_set(), cache, q, limits, scale);
        check_near_double(cache, q, limits, scale, expected);
        for (const KernelSet& set : sets_under_test()) {
          check_same(attend(set, cache, q, limits, scale).data(), expected.data(), expected.size(),
                     std::string(set.name) + " attend dim=" + std::to_string(dim) + " limit=" + std::to_string(limit) +
                         " rows=" + std::to_string(rows));
        }
      }
    }
  }
}

TEST("rows that see very different lengths each get what they get alone") {
  const Cache cache(64, 200);
  const std::vector<int64_t> limits = {1, 200, 33, 32, 64, 199, 16, 17};
  const std::vector<float> q = normals(limits.size() * 64);
  for (const KernelSet& set : kernel_sets()) {
    if (!missing_for(set, cpu_info()).empty()) continue;
    const std::vector<float> together = attend(set, cache, q, limits, 0.125f);
    for (std::size_t r = 0; r < limits.size(); ++r) {
      const std::vector<float> query(q.begin() + static_cast<int64_t>(r) * 64,
                                     q.begin() + static_cast<int64_t>(r + 1) * 64);
      check_same(attend(set, cache, query, {limits[r]}, 0.125f).data(), together.data() + r * 64, 64,
                 std::string(set.name) + " row alone");
    }
  }
}

// As check_near_double; the cap shrinks errors, and the slope adds two roundings of its term.
void check_bent(const Cache& cache, const std::vector<float>& q, int64_t limit, float scale, const Bends& bends,
                const std::vector<float>& got) {
  const int64_t begin = bends.window ? std::max<int64_t>(0, limit - bends.window) : 0;
  std::vector<double> weight(static_cast<std::size_t>(limit));
  double total = 0;
  for (int64_t t = begin; t < limit; ++t) {
    double score = 0;
    for (int64_t d = 0; d < cache.head_dim; ++d) {
      score += static_cast<double>(q[static_cast<std::size_t>(d)]) * cache.key(t, d);
    }
    score *= static_cast<double>(scale);
    const auto cap = static_cast<double>(bends.softcap);
    if (cap != 0) score = cap * std::tanh(score / cap);
    score += static_cast<double>(bends.slope) * static_cast<double>(t - (limit - 1));
    total += weight[static_cast<std::size_t>(t)] = std::exp(score);
  }
  for (int64_t d = 0; d < cache.head_dim; ++d) {
    double sum = 0;
    for (int64_t t = begin; t < limit; ++t) sum += weight[static_cast<std::size_t>(t)] / total * cache.value(t, d);
    CHECK(std::abs(static_cast<double>(got[static_cast<std::size_t>(d)]) - sum) <= 2e-5);  // of values of about 1
  }
}

TEST("windows, soft caps and slopes: every set has the bits of scalar, alone as together, near the real numbers") {
  for (const int64_t dim : {17, 80}) {
    const Cache cache(dim, 150);
    for (const Bends& bends : {Bends{1}, Bends{33}, Bends{64, 20.0f}, Bends{0, 5.0f}, Bends{0, 0, 0.3f},
                               Bends{40, 10.0f, 0.02f}, Bends{1000}}) {
      const std::vector<int64_t> limits = {1, 150, 33, 97, 96, 64, 32, 2};
      const std::vector<float> q = normals(limits.size() * static_cast<std::size_t>(dim));
      const std::vector<float> expected = attend(scalar_set(), cache, q, limits, 0.25f, bends);
      for (const KernelSet& set : sets_under_test()) {
        check_same(attend(set, cache, q, limits, 0.25f, bends).data(), expected.data(), expected.size(), set.name);
      }
      const std::vector<float> first(q.begin(), q.begin() + dim);
      for (const int64_t limit : {1, 31, 33, 150}) {
        check_bent(cache, first, limit, 0.25f, bends, attend(scalar_set(), cache, first, {limit}, 0.25f, bends));
      }
      if (bends.slope != 0) continue;  // which differs by row
      for (std::size_t r = 0; r < limits.size(); ++r) {
        const auto at = static_cast<int64_t>(r) * dim;
        const std::vector<float> query(q.begin() + at, q.begin() + at + dim);
        check_same(attend(scalar_set(), cache, query, {limits[r]}, 0.25f, bends).data(), expected.data() + at,
                   static_cast<std::size_t>(dim), "row alone");
      }
    }
  }
}

TEST("scores far apart give the value of the largest one, and a NaN query gives NaN") {
  const Cache cache(64, 50);
  std::vector<float> q = normals(64, 1e4f);
  int64_t best = 0;
  double best_score = -1e300;
  for (int64_t t = 0; t < 50; ++t) {
    double score = 0;
    for (int64_t d = 0; d < 64; ++d) score += static_cast<double>(q[static_cast<std::size_t>(d)]) * cache.key(t, d);
    if (score > best_score) best = t, best_score = score;
  }
  for (const KernelSet& set : kernel_sets()) {
    if (!missing_for(set, cpu_info()).empty()) continue;
    const std::vector<float> out = attend(set, cache, q, {50}, 1.0f);
    for (int64_t d = 0; d < 64; ++d) {
      CHECK_EQ(static_cast<double>(out[static_cast<std::size_t>(d)]), cache.value(best, d));
    }
    std::vector<float> broken = q;
    broken[3] = poison();
    for (const float value : attend(set, cache, broken, {50}, 1.0f)) CHECK(std::isnan(value));
  }
}

}  // namespace
}  // namespace cpuinfer

int main() { return check::run_all(); }
