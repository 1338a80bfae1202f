// Tile units: products and attention are near the real numbers, by bounds derived from rounding to bf16, and what a row
// gets does not depend on the other rows, the other panels or where its positions begin.
#include <algorithm>

#include "attend_cases.h"
#include "kernels/pack.h"

namespace cpuinfer {
namespace {

constexpr double kRounded = 0x1p-9;  // the most that rounding to bf16 moves a number, relatively
constexpr double kUnit = 0x1p-23;    // the same for a sum in fp32, rounded to even or not

const TileKernels* tile_units() {
  static const TileKernels* const units = [] {
    const KernelSet& amx = kernel_sets().front();
    const std::string missing = missing_for(amx, cpu_info());
    std::printf("%s %s%s%s\n", missing.empty() ? "testing" : "skipped", amx.name, missing.empty() ? "" : ": ",
                missing.c_str());
    return missing.empty() ? amx.tiles : nullptr;
  }();
  return units;
}

std::size_t size(int64_t n) { return static_cast<std::size_t>(n); }

// A matrix of random weights whose magnitudes are those of a model.
PackedMatrix random_matrix(Encoding encoding, int64_t n, int64_t k) {
  const bool integers = encoding == Encoding::kInt4 || encoding == Encoding::kInt8;
  const BlockLayout* layout = block_layout(encoding);
  PackOptions options{.zero = !integers ? 0 : encoding == Encoding::kInt4 ? 8 : 128};
  if (encoding == Encoding::kTable4) options.table = normals(16);
  PackedMatrix matrix(encoding, n, k, options);
  if (is_float(encoding)) {
    std::vector<uint16_t> values(size(n * k));
    for (uint16_t& value : values) {
      const float x = normal();
      value = encoding == Encoding::kF16 ? float_to_half(x) : static_cast<uint16_t>(std::bit_cast<uint32_t>(x) >> 16);
    }
    matrix.set_float_rows(0, n, values.data());
  } else if (layout == nullptr) {
    std::vector<uint8_t> codes(size(n * k));
    std::vector<uint16_t> scale(size(n * k / kGroup));
    for (uint8_t& code : codes) code = static_cast<uint8_t>(random_bits()() % (encoding == Encoding::kInt8 ? 256 : 16));
    for (uint16_t& value : scale) value = float_to_half(normal());
    matrix.set_integer_rows(0, n, codes.data(), scale.data(), nullptr);
  } else {
    std::vector<uint8_t> blocks(size(n * k / layout->inputs * layout->bytes));
    // Bytes whose halves, whichever are scales, are small numbers.
    for (uint8_t& byte : blocks) byte = static_cast<uint8_t>(random_bits()() % 0x3c);
    matrix.set_block_rows(0, n, blocks.data());
  }
  return matrix;
}

std::vector<uint16_t> tiles_of(const std::vector<float>& x, int64_t rows, int64_t k) {
  std::vector<uint16_t> tiles(size(rows * round_up(k, kGroup)), 0x7fc0);
  for (int64_t row = 0; row < rows; ++row) tile_units()->to_tiles(x.data() + row * k, k, rows, row, tiles.data());
  return tiles;
}

// Some of x's rows, [count][panels * 16], into memory that ends at a guard page.
std::vector<float> multiply_some(const PackedMatrix& matrix, int64_t begin, int64_t end, const std::vector<float>& x,
                                 int64_t rows, int64_t row, int64_t count) {
  const Guarded<uint16_t> tiles(tiles_of(x, rows, matrix.view().k));
  const int64_t width = (end - begin) * kLanes;
  Guarded<float> y(size(count * width));
  std::fill(y.begin(), y.end(), poison());
  tile_units()->multiply({&matrix.view(), begin, end, tiles.data(), rows, row, count, y.data(), width});
  return {y.begin(), y.end()};
}

std::vector<float> multiply(const PackedMatrix& matrix, int64_t begin, int64_t end, const std::vector<float>& x,
                            int64_t rows) {
  return multiply_some(matrix, begin, end, x, rows, 0, rows);
}

void check_near(const PackedMatrix& matrix, const std::vector<float>& x, int64_t rows, const std::vector<float>& y,
                const std::string& what) {
  const int64_t n = matrix.view().n, k = matrix.view().k, width = matrix.panels() * kLanes;
  std::vector<float> w(size(k));
  for (int64_t i = 0; i < n; ++i) {
    matrix.read_row(i, w.data());
    for (int64_t row = 0; row < rows; ++row) {
      double sum = 0, magnitude = 0;
      for (int64_t j = 0; j < k; ++j) {
        const double term = static_cast<double>(w[size(j)]) * static_cast<double>(x[size(row * k + j)]);
        sum += term;
        magnitude += std::abs(term);
      }
      const double bound = magnitude * (2 * kRounded + kRounded * kRounded + static_cast<double>(k + 4) * kUnit);
      const double off = std::abs(static_cast<double>(y[size(row * width + i)]) - sum);
      if (off <= bound) continue;
      ++check::failures();
      std::fprintf(stderr, "%s, row %d, output %d: off by %g, at most %g\n", what.c_str(), static_cast<int>(row),
                   static_cast<int>(i), off, bound);
      return;
    }
  }
}

TEST("products of every encoding are within the roundings to bf16") {
  if (tile_units() == nullptr) return;
  std::vector<Encoding> encodings = {Encoding::kInt4, Encoding::kInt8, Encoding::kTable4, Encoding::kF16,
                                     Encoding::kBF16};
#define CPUINFER_LIST(encoding, Unpacked, name) encodings.push_back(Encoding::encoding);
  CPUINFER_BLOCK_ENCODINGS(CPUINFER_LIST)
#undef CPUINFER_LIST
  for (const Encoding encoding : encodings) {
    for (const auto& [n, k, rows] : {std::array<int64_t, 3>{16, 256, 32}, {33, 768, 64}, {40, 512, 32}}) {
      const PackedMatrix matrix = random_matrix(encoding, n, k);
      const std::vector<float> x = normals(size(rows * k));
      check_near(matrix, x, rows, multiply(matrix, 0, matrix.panels(), x, rows), encoding_name(encoding));
    }
  }
}

TEST("inputs that end within tiles and blocks of tiles are products too") {
  if (tile_units() == nullptr) return;
  for (const int64_t k : {32, 96, 480, 544, 1056}) {
    const PackedMatrix matrix = random_matrix(Encoding::kInt4, 17, k);
    const std::vector<float> x = normals(size(32 * k));
    check_near(matrix, x, 32, multiply(matrix, 0, 2, x, 32), "int4 of " + std::to_string(k));
  }
  for (const int64_t k : {1, 2, 7, 31, 33, 513}) {
    const PackedMatrix matrix = random_matrix(Encoding::kBF16, 17, k);
    const std::vector<float> x = normals(size(32 * k));
    check_near(matrix, x, 32, multiply(matrix, 0, 2, x, 32), "bf16 of " + std::to_string(k));
  }
}

TEST("groups of several sizes, zero points and biases are weights like all others") {
  if (tile_units() == nullptr) return;
  const int64_t n = 48, k = 1536;
  for (const int64_t group : {32, 64, 128, 1536}) {
    for (const bool zeros : {false, true}) {
      for (const Encoding encoding : {Encoding::kInt4, Encoding::kInt8}) {
        const int codes_of = encoding == Encoding::kInt4 ? 16 : 256;
        PackedMatrix matrix(encoding, n, k, {.zero = 3, .has_bias = !zeros, .has_zeros = zeros, .group = group});
        std::vector<uint8_t> codes(size(n * k)), zero(size(n * k / group));
        std::vector<uint16_t> scale(zero.size()), bias(zero.size());
        for (uint8_t& code : codes) code = static_cast<uint8_t>(static_cast<int>(random_bits()() % 4096) % codes_of);
        for (uint8_t& code : zero) code = static_cast<uint8_t>(static_cast<int>(random_bits()() % 4096) % codes_of);
        for (uint16_t& value : scale) value = float_to_half(normal());
        for (uint16_t& value : bias) value = float_to_half(normal());
        matrix.set_integer_rows(0, n, codes.data(), scale.data(), zeros ? nullptr : bias.data(),
                                zeros ? zero.data() : nullptr);
        const std::vector<float> x = normals(size(32 * k));
        check_near(matrix, x, 32, multiply(matrix, 0, 3, x, 32), "groups of " + std::to_string(group));
      }
    }
  }
}

TEST("a row's product does not depend on the other rows, nor on the panels beside its own") {
  if (tile_units() == nullptr) return;
  const int64_t k = 1056, n = 80, rows = 160;
  const PackedMatrix matrix = random_matrix(Encoding::kInt4, n, k);
  const std::vector<float> x = normals(size(rows * k));
  const std::vector<float> all = multiply(matrix, 0, 5, x, rows);
  for (int64_t row = 0; row < rows; row += kTileBlock) {
    const std::vector<float> some(x.begin() + row * k, x.begin() + (row + kTileBlock) * k);
    for (int64_t panel = 0; panel < 5; ++panel) {
      const std::vector<float> y = multiply(matrix, panel, panel + 1, some, kTileBlock);
      for (int64_t r = 0; r < kTileBlock; ++r) {
        check_same(y.data() + r * kLanes, all.data() + (row + r) * n + panel * kLanes, kLanes, "alone");
      }
    }
    const std::vector<float> y = multiply_some(matrix, 0, 5, x, rows, row, rows - row);
    check_same(y.data(), all.data() + row * n, (rows - row) * n, "from a row on");
  }
}

TEST("NaN and infinity of an input reach its row and no other") {
  if (tile_units() == nullptr) return;
  const PackedMatrix matrix = random_matrix(Encoding::kInt4, 32, 64);
  std::vector<float> x = normals(32 * 64);
  x[5 * 64 + 7] = std::bit_cast<float>(0x7fc00000u);
  x[9 * 64] = HUGE_VALF;
  const std::vector<float> y = multiply(matrix, 0, 2, x, 32);
  for (std::size_t i = 0; i < y.size(); ++i) CHECK_EQ(std::isfinite(y[i]), i / 32 != 5 && i / 32 != 9);
}

struct Kind {
  CacheType cache;
  int64_t head_dim, heads, window;
  float softcap;
  bool slopes;
};

const float kSlopes[] = {0.5f, 0.125f, 0.03f, 0.0f, 0.25f, 1.0f, 0.01f, 0.06f};

// Queries [rows][heads * head_dim] at `position` and after it.
std::vector<float> attend(const Cache& cache, const Kind& kind, const float* q, int64_t position, int64_t rows) {
  const int64_t width = kind.heads * kind.head_dim;
  const Guarded<float> queries(std::vector<float>(q, q + rows * width));
  Guarded<float> out(size(rows * width));
  std::fill(out.begin(), out.end(), poison());
  Buffer room(size(tile_room(kind.head_dim)));
  std::fill_n(room.as<uint8_t>(), room.bytes(), uint8_t{0xff});
  tile_units()->attend({rows, position, kind.heads, queries.data(), out.data(), width, width, kind.window,
                        cache.pages.data(), kind.cache, cache.place, kind.head_dim, 0.125f, kind.softcap,
                        kind.slopes ? kSlopes : nullptr, room.as<void>()});
  return {out.begin(), out.end()};
}

// Scores are off by the roundings of queries and keys; then weights by as much in their exponent, twice for their sum;
// weights and values are rounded too.
void check_row(const Cache& cache, const Kind& kind, const float* query, int64_t position, int64_t head,
               const float* out) {
  const std::vector<float> plain(query, query + kind.head_dim);
  const std::vector<double> q =
      kind.cache == CacheType::kInt4 ? spread(plain) : std::vector<double>(plain.begin(), plain.end());
  const int64_t begin = kind.window > 0 ? std::max<int64_t>(0, position + 1 - kind.window) : 0;
  std::vector<double> weight;
  double off = 0, total = 0, most_value = 0;
  for (int64_t t = begin; t <= position; ++t) {
    double score = 0, magnitude = 0;
    for (int64_t d = 0; d < kind.head_dim; ++d) {
      const double term = q[size(d)] * cache.key(t, d) * 0.125;
      score += term;
      magnitude += std::abs(term);
      most_value = std::max(most_value, std::abs(cache.value(t, d)));
    }
    if (kind.softcap != 0) score = kind.softcap * std::tanh(score / kind.softcap);
    if (kind.slopes) score += static_cast<double>(kSlopes[head]) * static_cast<double>(t - position);
    off = std::max(off, magnitude * (2.01 * kRounded + 300 * kUnit) + 40 * kUnit * (1 + std::abs(score)));
    weight.push_back(std::exp(score));
    total += weight.back();
  }
  const double bound = most_value * (std::exp(2 * off) - 1 + 2.01 * kRounded + 2000 * kUnit);
  for (int64_t d = 0; d < kind.head_dim; ++d) {
    double y = 0;
    for (int64_t t = begin; t <= position; ++t) y += weight[size(t - begin)] / total * cache.value(t, d);
    if (std::abs(static_cast<double>(out[d]) - y) <= bound) continue;
    ++check::failures();
    std::fprintf(stderr, "head_dim %d, position %d, dimension %d: %g, expected %g within %g\n",
                 static_cast<int>(kind.head_dim), static_cast<int>(position), static_cast<int>(d),
                 static_cast<double>(out[d]), y, bound);
    return;
  }
}

TEST("attention is within the roundings to bf16, and a row's the same in any block of rows") {
  if (tile_units() == nullptr) return;
  for (const CacheType type : kCacheTypes) {
    for (const Kind& kind : {Kind{type, 64, 4, 0, 0, false},
                             {type, 40, 1, 0, 0, false},
                             {type, 80, 3, 0, 0, true},
                             {type, 128, 8, 100, 0, false},
                             {type, 64, 2, 33, 20, false},
                             {type, 16, 2, 300, 0, true},
                             {type, 256, 1, 0, 30, false}}) {
      const int64_t width = kind.heads * kind.head_dim, position = 224, rows = 128;
      const Cache cache(type, kind.head_dim, position + rows);
      const std::vector<float> q = normals(size(rows * width));
      const std::vector<float> out = attend(cache, kind, q.data(), position, rows);
      for (int64_t row = 0; row < rows; row += 9) {
        for (int64_t head = 0; head < kind.heads; ++head) {
          const int64_t at = row * width + head * kind.head_dim;
          check_row(cache, kind, q.data() + at, position + row, head, out.data() + at);
        }
      }
      for (int64_t row = 0; row < rows; row += kTileBlock) {
        const std::vector<float> some = attend(cache, kind, q.data() + row * width, position + row, kTileBlock);
        check_same(some.data(), out.data() + row * width, some.size(), "a block alone");
      }
    }
  }
}

TEST("the first page of a text attends to itself") {
  if (tile_units() == nullptr) return;
  const Kind kind{CacheType::kF16, 64, 2, 0, 0, false};
  const Cache cache(kind.cache, 64, 32);
  const std::vector<float> q = normals(32 * 128);
  const std::vector<float> out = attend(cache, kind, q.data(), 0, 32);
  for (int64_t row = 0; row < 32; ++row) {
    for (int64_t head = 0; head < 2; ++head) {
      check_row(cache, kind, q.data() + row * 128 + head * 64, row, head, out.data() + row * 128 + head * 64);
    }
  }
}

}  // namespace
}  // namespace cpuinfer

int main() { return check::run_all(); }
