// Every kernel set this machine runs gives the bits of the scalar set, over awkward sizes and numbers, inside its
// bounds.
#include <algorithm>
#include <cstdio>
#include <limits>
#include <optional>

#include "kernel_cases.h"
#include "kernels/half.h"
#include "kernels/pack.h"
#include "kernels/vec_scalar.h"

namespace cpuinfer {
namespace {

namespace body {  // the shared body on portable vectors
#include "kernels/exponential.inl.h"
}

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
const int64_t kSizes[] = {1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 576};
const int kRowCounts[] = {1, 2, 3, 7, 8, 13};

std::string describe(const KernelSet& set, const char* what, int64_t n, int64_t k, int rows) {
  return std::string(set.name) + " " + what + " n=" + std::to_string(n) + " k=" + std::to_string(k) +
         " rows=" + std::to_string(rows);
}

// Tiles of quantised rows whose three arrays end at guard pages.
struct Activations {
  Guarded<int8_t> codes;
  Guarded<float> scale;
  Guarded<int32_t> sum;
  QuantizedRows first;
  Activations(const KernelSet& set, const float* x, int count, int64_t k)
      : codes(static_cast<std::size_t>(count * k)),
        scale(static_cast<std::size_t>(count * k / kGroup)),
        sum(scale.size() * 2),
        first{std::min(count, kTileRows), codes.data(), scale.data(), sum.data()} {
    std::fill(codes.begin(), codes.end(), int8_t{77});
    std::fill(scale.begin(), scale.end(), poison());
    for (int row = 0; row < count; row += kTileRows) {
      const int64_t at = row * k;
      set.quantize(
          x + at, k, k,
          {std::min(kTileRows, count - row), codes.data() + at, scale.data() + at / kGroup, sum.data() + at / kHalf});
    }
  }
};

// Rows of x: ordinary, all extreme of one sign, alternating extremes, with NaN, infinite, and below the least scale.
std::vector<float> activations(int rows, int64_t k) {
  std::vector<float> x = normals(static_cast<std::size_t>(rows * k));
  for (int64_t i = 0; i < k; ++i) {
    const auto at = [&](int r) -> float& { return x[static_cast<std::size_t>(r * k + i)]; };
    if (rows > 1) at(1) = 3.0f;
    if (rows > 2) at(2) = i % 2 ? -5.0f : 5.0f;
    if (rows > 3) at(3) = i == k - 1 ? kNan : at(3);
    if (rows > 4) at(4) = i == 0 ? -kInfinity : 0.0f;
    if (rows > 5) at(5) = i % 3 ? 0x1p-130f : 9e-31f;
    if (rows > 6) at(6) = i % 5 ? 0x1.8p100f : std::numeric_limits<float>::max();
  }
  return x;
}

// Fills a matrix with random codes, a row of all-largest codes, and every kind of scale.
void fill_integers(PackedMatrix& matrix) {
  const Weights& w = matrix.view();
  const int64_t n = w.n, k = w.k, groups = k / w.group;
  const uint32_t largest = w.encoding == Encoding::kInt8 ? 255 : 15;
  const uint16_t kinds[] = {0, 0x8000, 1, 0x03ff, 0xbc00, 0x3c00, 0x7bff};  // zeros, subnormals, -1, 1, 65504
  std::vector<uint8_t> codes(static_cast<std::size_t>(n * k));
  std::vector<uint16_t> scale(static_cast<std::size_t>(n * groups)), bias(scale.size());
  for (uint8_t& code : codes) code = static_cast<uint8_t>(random_bits()() % (largest + 1));
  std::fill_n(codes.begin(), k, static_cast<uint8_t>(largest));
  for (uint16_t& value : scale) {
    value = random_bits()() % 4 ? float_to_half(normal(0.01f)) : kinds[random_bits()() % std::size(kinds)];
  }
  if (n > 3) scale.back() = 0x7c00;  // infinity
  for (uint16_t& value : bias) value = float_to_half(normal());
  std::vector<uint8_t> zeros(scale.size());
  for (uint8_t& zero : zeros) zero = static_cast<uint8_t>(random_bits()() % (largest + 1));
  matrix.set_integer_rows(0, n, codes.data(), scale.data(), w.cell.bias ? bias.data() : nullptr,
                          w.cell.zeros ? zeros.data() : nullptr);
}

// Random bytes are blocks of any type, with scales of every kind.
void fill_blocks(PackedMatrix& matrix) {
  std::vector<uint8_t> blocks(static_cast<std::size_t>(matrix.view().n * matrix.row_bytes()));
  for (uint8_t& byte : blocks) byte = static_cast<uint8_t>(random_bits()());
  matrix.set_block_rows(0, matrix.view().n, blocks.data());
}

// The same weights in memory that ends at guard pages.
struct GuardedWeights {
  Guarded<uint8_t> bytes;
  Weights view;
  explicit GuardedWeights(const PackedMatrix& matrix)
      : bytes(matrix.view().codes, static_cast<std::size_t>(matrix.bytes())), view(matrix.view()) {
    view.codes = bytes.data();
  }
  static std::size_t padded(const PackedMatrix& matrix) { return static_cast<std::size_t>(matrix.panels() * kLanes); }
};

// Runs a product over all panels, checks that only they are written, and returns y.
std::vector<float> product(const KernelSet& set, const Weights& w, const QuantizedRows& q, const float* x, int rows) {
  const int64_t panels = (w.n + kLanes - 1) / kLanes, ldy = panels * kLanes;
  Guarded<float> y(static_cast<std::size_t>(rows * ldy));
  std::fill(y.begin(), y.end(), poison());
  set.gemm({&w, panels - 1, panels, q, x, w.k, rows, y.data() + (panels - 1) * kLanes, ldy});
  for (int64_t i = 0; i < rows * ldy; ++i) {
    if (i % ldy < (panels - 1) * kLanes) CHECK(untouched(y[static_cast<std::size_t>(i)]));
  }
  set.gemm({&w, 0, panels - 1, q, x, w.k, rows, y.data(), ldy});
  return {y.begin(), y.end()};
}

void compare_products(Encoding encoding, int64_t n, int64_t k, int rows, const PackOptions& options) {
  PackedMatrix matrix(encoding, n, k, options);
  block_layout(encoding) ? fill_blocks(matrix) : fill_integers(matrix);
  const GuardedWeights weights(matrix);
  const std::size_t padded = GuardedWeights::padded(matrix);
  const Guarded<float> x(activations(rows, k));
  Activations expected(scalar_set(), x.data(), rows, k);
  const std::vector<float> y = product(scalar_set(), weights.view, expected.first, nullptr, rows);
  if (rows > 3) CHECK(std::isnan(y[static_cast<std::size_t>(3 * padded)]));
  for (const KernelSet& set : sets_under_test()) {
    const std::string what = describe(set, encoding_name(encoding), n, k, rows);
    Activations got(set, x.data(), rows, k);
    CHECK(std::equal(got.codes.begin(), got.codes.end(), expected.codes.begin()));
    CHECK(std::equal(got.sum.begin(), got.sum.end(), expected.sum.begin()));
    check_same(got.scale.data(), expected.scale.data(), got.scale.size(), what + " scale");
    check_same(product(set, weights.view, got.first, nullptr, rows).data(), y.data(), y.size(), what);
  }
}

TEST("quantised rows and integer products of every set have the bits of scalar") {
  for (const int64_t n : kSizes) {
    for (const int64_t groups : kSizes) {
      if (n * groups > 8000) continue;
      for (const int rows : kRowCounts) {
        compare_products(Encoding::kInt4, n, groups * kGroup, rows, {.zero = 8});
        compare_products(Encoding::kInt4, n, groups * kGroup, rows, {.has_bias = true});
        if (groups < 4) compare_products(Encoding::kInt4, n, groups * kGroup, rows, {.zero = 15});
        compare_products(Encoding::kInt8, n, groups * kGroup, rows, {.zero = 128});
        compare_products(Encoding::kInt8, n, groups * kGroup, rows, {.zero = 3, .has_bias = true});
      }
    }
  }
}

std::vector<float> some_table() {
  std::vector<float> table(16);
  for (std::size_t i = 0; i < table.size(); ++i) table[i] = static_cast<float>(i * i) / 225.0f - 0.4f;
  return table;
}

TEST("products with wide groups, zero points and tables have the bits of scalar") {
  for (const int64_t n : {1, 17, 33}) {
    for (const int rows : kRowCounts) {
      compare_products(Encoding::kInt4, n, 256, rows, {.has_zeros = true, .group = 64});
      compare_products(Encoding::kInt4, n, 96, rows, {.has_bias = true, .has_zeros = true, .group = 32});
      compare_products(Encoding::kInt8, n, 256, rows, {.zero = 128, .group = 128});
      compare_products(Encoding::kInt8, n, 160, rows, {.has_zeros = true, .group = 160});
      compare_products(Encoding::kTable4, n, 192, rows, {.group = 64, .table = some_table()});
    }
  }
}

TEST("products of every block encoding have the bits of scalar") {
  for (int e = static_cast<int>(Encoding::kQ5_0); e <= static_cast<int>(Encoding::kIq1M); ++e) {
    const auto encoding = static_cast<Encoding>(e);
    for (const int64_t blocks : {1, 3}) {
      for (const int64_t n : {1, 17, 33}) {
        for (const int rows : kRowCounts) {
          compare_products(encoding, n, blocks * block_layout(encoding)->inputs, rows, {});
        }
      }
    }
    compare_products(encoding, 16, 9 * block_layout(encoding)->inputs, 8, {});
  }
}

TEST("every number of rows up to two tiles, and the most, give each row the same bits") {
  const int64_t n = 33;
  for (const Encoding encoding :
       {Encoding::kInt4, Encoding::kInt8, Encoding::kTable4, Encoding::kQ4K, Encoding::kQ6K, Encoding::kIq4Nl}) {
    PackOptions options;
    if (encoding == Encoding::kTable4) options.table = some_table();
    PackedMatrix matrix(encoding, n, block_layout(encoding) ? 512 : 288, options);
    const int64_t k = matrix.view().k;
    block_layout(encoding) ? fill_blocks(matrix) : fill_integers(matrix);
    const std::vector<float> x = activations(kMostRows, k);
    for (const KernelSet& set : kernel_sets()) {
      if (!missing_for(set, cpu_info()).empty()) continue;
      std::vector<float> all;
      for (int rows = kMostRows; rows >= 1; rows = rows == kMostRows ? 2 * kTileRows : rows - 1) {
        const Activations q(set, x.data(), rows, k);
        const std::vector<float> y = product(set, matrix.view(), q.first, nullptr, rows);
        if (rows == kMostRows) all = y;
        check_same(y.data(), all.data(), y.size(), describe(set, encoding_name(encoding), n, k, rows));
      }
    }
  }
}

TEST("panels that one row reads side by side, or woven with a partner's, have the bits of each alone") {
  for (int e = static_cast<int>(Encoding::kInt4); e <= static_cast<int>(Encoding::kIq1M); ++e) {
    const auto encoding = static_cast<Encoding>(e);
    if (is_float(encoding)) continue;
    const int64_t n = 16 * 19 - 3, k = 512, panels = 19;
    PackOptions options;
    if (encoding == Encoding::kTable4) options.table = some_table();
    const PackedMatrix sized(encoding, n, k, options);
    PackedMatrix first(encoding, n, k, options, {.room = sized.panel_bytes()});
    PackedMatrix second(encoding, n, k, options, {.beside = &first});
    for (PackedMatrix* matrix : {&first, &second}) {
      block_layout(encoding) ? fill_blocks(*matrix) : fill_integers(*matrix);
    }
    const std::optional<Weights> both = woven(first, second);
    CHECK(both.has_value() && !woven(second, first) && !woven(first, sized));
    if (!both) continue;
    const std::vector<float> x = activations(1, k);
    for (const KernelSet& set : sets_under_test()) {
      const Activations q(set, x.data(), 1, k);
      const auto multiply = [&](const Weights& w, int64_t begin, int64_t end) {
        std::vector<float> y(static_cast<std::size_t>((end - begin) * kLanes));
        set.gemm({&w, begin, end, q.first, nullptr, k, 1, y.data(), 0});
        return y;
      };
      const std::vector<float> pairs = multiply(*both, 0, 2 * panels);
      for (int64_t panel = 0; panel < 2 * panels; ++panel) {
        const std::vector<float> alone = multiply((panel % 2 ? second : first).view(), panel / 2, panel / 2 + 1);
        check_same(pairs.data() + panel * kLanes, alone.data(), alone.size(),
                   describe(set, encoding_name(encoding), n, k, 1) + " panel " + std::to_string(panel));
      }
    }
  }
}

TEST("float products of every set have the bits of scalar") {
  for (const Encoding encoding : {Encoding::kF16, Encoding::kBF16, Encoding::kF32}) {
    for (const int64_t n : kSizes) {
      for (const int64_t k : kSizes) {
        if (n * k > 40000) continue;
        PackedMatrix matrix(encoding, n, k);
        const std::size_t width = encoding == Encoding::kF32 ? 4 : 2;
        std::vector<uint8_t> values(static_cast<std::size_t>(n * k) * width);
        for (uint8_t& byte : values) byte = static_cast<uint8_t>(random_bits()());  // any bits, NaN included
        matrix.set_float_rows(0, n, values.data());
        const GuardedWeights weights(matrix);
        for (const int rows : kRowCounts) {
          const Guarded<float> x(activations(rows, k));
          const std::vector<float> y = product(scalar_set(), weights.view, {}, x.data(), rows);
          for (const KernelSet& set : sets_under_test()) {
            check_same(product(set, weights.view, {}, x.data(), rows).data(), y.data(), y.size(),
                       describe(set, "float", n, k, rows));
          }
        }
      }
    }
  }
}

// Runs `kernel(set, data)` in place on a copy of `values` and compares every set with scalar.
template <typename Kernel>
void compare_in_place(const char* what, const std::vector<float>& values, Kernel kernel) {
  Guarded<float> expected(values);
  kernel(scalar_set(), expected.data());
  for (const KernelSet& set : sets_under_test()) {
    Guarded<float> got(values);
    kernel(set, got.data());
    check_same(got.data(), expected.data(), values.size(),
               std::string(set.name) + " " + what + " n=" + std::to_string(values.size()));
  }
}

std::vector<float> awkward_floats(int64_t n) {
  std::vector<float> values = normals(static_cast<std::size_t>(n), 20.0f);
  const float special[] = {0.0f, -0.0f, kInfinity, -kInfinity, kNan, 1e-45f, -1e-40f, 88.7f, -88.7f, -104.5f, 3e38f};
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (random_bits()() % 3 == 0) values[i] = special[random_bits()() % std::size(special)];
  }
  return values;
}

TEST("elementwise kernels of every set have the bits of scalar, and write nothing past the end") {
  for (const int64_t n : kSizes) {
    const Guarded<float> other(awkward_floats(n)), weight(normals(static_cast<std::size_t>(n)));
    const std::vector<float> awkward = awkward_floats(n), plain = normals(static_cast<std::size_t>(n));
    compare_in_place("add", awkward, [&](const KernelSet& set, float* y) { set.add(other.data(), n, y); });
    compare_in_place("multiply", awkward, [&](const KernelSet& set, float* y) { set.multiply(other.data(), n, y); });
    for (int a = 0; a <= static_cast<int>(Activation::kGeluTanh); ++a) {
      compare_in_place("activate", awkward,
                       [&](const KernelSet& set, float* y) { set.activate(static_cast<Activation>(a), n, y); });
    }
    compare_in_place("softcap", awkward, [&](const KernelSet& set, float* y) { set.softcap(50.0f, n, y); });
    compare_in_place("layer_norm", plain, [&](const KernelSet& set, float* y) {
      set.layer_norm(y, weight.data(), n % 2 ? nullptr : weight.data(), n, 1e-5f, y);  // in place
    });
    compare_in_place("rms_norm", plain, [&](const KernelSet& set, float* y) {
      set.rms_norm(y, weight.data(), n, 1e-5f, y);  // in place
    });
    compare_in_place("to_half", awkward, [&](const KernelSet& set, float* y) {
      Guarded<uint16_t> half(static_cast<std::size_t>(n));
      set.to_half(y, n, half.data());
      for (int64_t i = 0; i < n; ++i) y[i] = half_to_float(half[static_cast<std::size_t>(i)]);
    });
    for (const bool interleaved : {false, true}) {
      std::vector<float> head = normals(static_cast<std::size_t>(2 * n));
      const Guarded<float> cosine(normals(static_cast<std::size_t>(n))), sine(normals(static_cast<std::size_t>(n)));
      compare_in_place("rope", head, [&](const KernelSet& set, float* y) {
        set.rope(y, cosine.data(), sine.data(), n, interleaved);
      });
    }
  }
}

TEST("every fp16 number widens and rounds back to itself, in plain code and in every set") {
  for (uint32_t bits = 0; bits < 0x10000; bits += kLanes) {
    Guarded<float> wide(kLanes);
    for (uint32_t i = 0; i < kLanes; ++i) wide[i] = half_to_float(static_cast<uint16_t>(bits + i));
    for (const KernelSet& set : sets_under_test()) {
      Guarded<uint16_t> half(kLanes);
      set.to_half(wide.data(), kLanes, half.data());
      for (uint32_t i = 0; i < kLanes; ++i) {
        const auto original = static_cast<uint16_t>(bits + i);
        const bool nan = (original & 0x7fff) > 0x7c00;
        CHECK_EQ(half[i], nan ? original | 0x200 : original);
        CHECK_EQ(float_to_half(wide[i]), half[i]);
      }
    }
  }
}

TEST("rounding to fp16 in plain code is that of every set, over all exponents and many fractions") {
  for (uint64_t bits = 0; bits < 0x100000000u; bits += 0x1ff1u * kLanes) {
    Guarded<float> x(kLanes);
    for (uint64_t i = 0; i < kLanes; ++i) x[i] = std::bit_cast<float>(static_cast<uint32_t>(bits + i * 0x1ff1u));
    for (const KernelSet& set : sets_under_test()) {
      Guarded<uint16_t> half(kLanes);
      set.to_half(x.data(), kLanes, half.data());
      for (std::size_t i = 0; i < kLanes; ++i) CHECK_EQ(half[i], float_to_half(x[i]));
    }
  }
}

// Absolute errors of the series in [0.7, 1.42), in 2^-24: the step before the last, |r| <= 0.347 times 1.2, makes 0.42;
// r itself, two roundings of 2^-26, 0.5 times the result; the dropped terms 0.1; together at most 1.03 where the result
// is below 1, whose unit of the last place is 2^-24.  The last rounding adds half a unit.  Above 1 the unit is twice
// that.
TEST("exp is within 1.6 units of the last place, 0 far below, infinite far above, and keeps NaN") {
  double worst = 0;
  for (float base = -87.0f; base < 88.7f; base += 0.0137f) {
    const Part result = body::exponential(each<Part>([&](int i) { return base + static_cast<float>(i) * 0.0008f; }));
    for (int i = 0; i < kLanes; ++i) {
      const float x = base + static_cast<float>(i) * 0.0008f, got = result.lane[i];
      if (x > 88.7f) continue;
      const double unit = static_cast<double>(std::nextafterf(got, kInfinity)) - static_cast<double>(got);
      worst = std::max(worst, std::abs(static_cast<double>(got) - std::exp(static_cast<double>(x))) / unit);
    }
  }
  std::printf("exp: at most %.3f units of the last place\n", worst);
  CHECK(worst < 1.6);
  const auto at = [](float x) { return body::exponential(fill(x)).lane[0]; };
  CHECK_EQ(at(0.0f), 1.0f);
  CHECK_EQ(at(-kInfinity), 0.0f);
  CHECK_EQ(at(-1e30f), 0.0f);
  CHECK_EQ(at(-104.0f), 0.0f);
  CHECK_EQ(at(-103.0f), std::exp(-103.0f));  // subnormal
  CHECK_EQ(at(89.0f), kInfinity);
  CHECK_EQ(at(kInfinity), kInfinity);
  CHECK(std::isnan(at(kNan)));
}

TEST("activations of very large and very small numbers are the number and zero") {
  for (const Activation activation : {Activation::kRelu, Activation::kSilu, Activation::kGelu, Activation::kGeluTanh}) {
    std::vector<float> y = {1e12f, 100.0f, -100.0f, -1e12f, 0.0f};
    scalar_set().activate(activation, static_cast<int64_t>(y.size()), y.data());
    CHECK(y == std::vector<float>({1e12f, 100.0f, 0.0f, 0.0f, 0.0f}));
  }
}

}  // namespace
}  // namespace cpuinfer

int main() { return check::run_all(); }
