// The scalar set does what kernels.h defines, to the bit: each definition written out anew as plain loops over unpacked
// numbers.
#include <algorithm>
#include <cstdlib>

#include "kernel_cases.h"
#include "kernels/half.h"
#include "kernels/pack.h"

namespace cpuinfer {
namespace {

TEST("quantised rows follow their definition") {
  const int64_t k = 160;
  const int rows = 5;
  std::vector<float> x = normals(static_cast<std::size_t>(rows * k));
  std::fill_n(x.begin(), kGroup, 1e-31f);
  x[32] = 127.0f;
  x[33] = 2.5f, x[34] = 3.5f, x[35] = -2.5f;  // halves of a step round to even
  for (int64_t i = 36; i < 64; ++i) x[static_cast<std::size_t>(i)] = 0.0f;
  const auto groups = static_cast<std::size_t>(k / kGroup);
  std::vector<int8_t> codes(x.size());
  std::vector<float> scale(groups * rows);
  std::vector<int32_t> sum(scale.size() * 2);
  scalar_set().quantize(x.data(), k, k, {rows, codes.data(), scale.data(), sum.data()});
  for (std::size_t g = 0; g < groups; ++g) {
    for (std::size_t r = 0; r < rows; ++r) {
      const float* in = x.data() + r * static_cast<std::size_t>(k) + g * kGroup;
      float m = 0;
      for (int i = 0; i < kGroup; ++i) m = std::max(m, std::abs(in[i]));
      const bool zero = m < 1e-30f;
      CHECK_EQ(scale[g * rows + r], zero ? 0.0f : m / 127.0f);
      int32_t total[2] = {};  // of the group, and of its first half
      for (std::size_t i = 0; i < kGroup; ++i) {
        const auto code = zero ? 0 : static_cast<int>(std::nearbyint(in[i] * (127.0f / m)));
        CHECK_EQ(static_cast<int>(codes[(g * rows + r) * kGroup + i]), code);
        total[0] += code;
        if (i < kHalf) total[1] += code;
      }
      for (std::size_t half = 0; half < 2; ++half) CHECK_EQ(sum[(g * 2 + half) * rows + r], total[half]);
    }
  }
  const std::vector<int8_t> halves(codes.begin() + kGroup * rows, codes.begin() + kGroup * rows + 4);
  CHECK(halves == std::vector<int8_t>({127, 2, 4, -2}));
}

void check_integer_product(Encoding encoding, int32_t zero, bool has_bias) {
  const std::size_t n = 21, k = 128, groups = k / kGroup, rows = 3, padded = 32;
  std::vector<uint8_t> codes(n * k);
  std::vector<uint16_t> scale(n * groups), bias(n * groups);
  for (uint8_t& code : codes) code = static_cast<uint8_t>(random_bits()() % (encoding == Encoding::kInt4 ? 16 : 256));
  for (uint16_t& value : scale) value = float_to_half(normal());
  for (uint16_t& value : bias) value = float_to_half(normal());
  PackedMatrix matrix(encoding, n, k, {.zero = zero, .has_bias = has_bias});
  matrix.set_integer_rows(0, n, codes.data(), scale.data(), has_bias ? bias.data() : nullptr);
  const std::vector<float> x = normals(rows * k);
  std::vector<int8_t> x_codes(rows * k);
  std::vector<float> x_scale(rows * groups), y(rows * padded);
  std::vector<int32_t> x_sum(rows * groups * 2);
  const QuantizedRows q{static_cast<int>(rows), x_codes.data(), x_scale.data(), x_sum.data()};
  scalar_set().quantize(x.data(), k, k, q);
  scalar_set().gemm({&matrix.view(), 0, 2, q, nullptr, 0, static_cast<int>(rows), y.data(), padded});
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t row = 0; row < n; ++row) {
      float expected = 0;
      for (std::size_t g = 0; g < groups; ++g) {
        const std::size_t at = g * rows + r, w = row * groups + g;
        int32_t integer = 0;
        for (std::size_t i = 0; i < kGroup; ++i) {
          integer += (codes[row * k + g * kGroup + i] - zero) * x_codes[at * kGroup + i];
        }
        expected = std::fma(static_cast<float>(integer), half_to_float(scale[w]) * x_scale[at], expected);
        if (!has_bias) continue;
        expected =
            std::fma(half_to_float(bias[w]), x_scale[at] * static_cast<float>(x_sum[g * 2 * rows + r]), expected);
      }
      CHECK_EQ(y[r * padded + row], expected);
    }
  }
}

TEST("integer products follow their definition") {
  check_integer_product(Encoding::kInt4, 8, false);
  check_integer_product(Encoding::kInt4, 0, true);
  check_integer_product(Encoding::kInt8, 128, false);
  check_integer_product(Encoding::kInt8, 7, true);
}

TEST("float products add in ascending k with one rounding a step") {
  const std::size_t n = 18, k = 45;
  const std::vector<float> w = normals(n * k), x = normals(k);
  PackedMatrix matrix(Encoding::kF32, n, k);
  matrix.set_float_rows(0, n, w.data());
  std::vector<float> y(32);
  scalar_set().gemm({&matrix.view(), 0, 2, {}, x.data(), k, 1, y.data(), 32});
  for (std::size_t row = 0; row < n; ++row) {
    float expected = 0;
    for (std::size_t i = 0; i < k; ++i) expected = std::fma(w[row * k + i], x[i], expected);
    CHECK_EQ(y[row], expected);
  }
}

TEST("the norm sums its lanes by the fixed tree") {
  for (const std::size_t n : {1u, 7u, 16u, 31u, 576u}) {
    const std::vector<float> x = normals(n), weight = normals(n);
    float lane[kLanes] = {};
    for (std::size_t i = 0; i < n; ++i) lane[i % kLanes] = std::fma(x[i], x[i], lane[i % kLanes]);
    const float a = (lane[0] + lane[8]) + (lane[4] + lane[12]), b = (lane[2] + lane[10]) + (lane[6] + lane[14]);
    const float c = (lane[1] + lane[9]) + (lane[5] + lane[13]), d = (lane[3] + lane[11]) + (lane[7] + lane[15]);
    const float total = (a + b) + (c + d);
    const float inverse = 1.0f / std::sqrt(total / static_cast<float>(n) + 1e-5f);
    std::vector<float> y(n);
    scalar_set().rms_norm(x.data(), weight.data(), static_cast<int64_t>(n), 1e-5f, y.data());
    for (std::size_t i = 0; i < n; ++i) CHECK_EQ(y[i], (x[i] * inverse) * weight[i]);
  }
}

TEST("rotary positions turn the pairs of either layout") {
  const std::size_t pairs = 5;
  const std::vector<float> cosine = normals(pairs), sine = normals(pairs), head = normals(2 * pairs);
  for (const bool interleaved : {false, true}) {
    std::vector<float> turned = head;
    scalar_set().rope(turned.data(), cosine.data(), sine.data(), pairs, interleaved);
    for (std::size_t i = 0; i < pairs; ++i) {
      const std::size_t first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 1 : i + pairs;
      CHECK_EQ(turned[first], head[first] * cosine[i] - head[second] * sine[i]);
      CHECK_EQ(turned[second], head[first] * sine[i] + head[second] * cosine[i]);
    }
  }
}

double in_reals(Activation activation, double z) {
  switch (activation) {
    case Activation::kRelu: return std::max(z, 0.0);
    case Activation::kSilu: return z / (1 + std::exp(-z));
    case Activation::kGelu: return z * std::erfc(-z / std::sqrt(2.0)) / 2;
    case Activation::kGeluTanh:
      return z * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (z + 0.044715 * z * z * z))) / 2;
    case Activation::kNone: break;
  }
  return z;
}

// u = 2^-24.  silu: exp within 1.6 units of at most 2 u, a sum and a quotient: 6 u of the result.  gelu_tanh: the inner
// polynomial errs by 4 roundings, exp turns them into 4 * 2 |inner| u, at most a share of the result; where |inner| > 9
// the result is within exp(-18) |z| of z or 0.  gelu: 7.5e-8 |z| from the formula, 12 roundings of |z| h <= |z| / 2.
TEST("activations are near the real numbers") {
  const double u = 0x1p-24;
  for (float z = -80.0f; z < 80.0f; z += 0.0371f) {
    for (const Activation activation :
         {Activation::kRelu, Activation::kSilu, Activation::kGelu, Activation::kGeluTanh, Activation::kNone}) {
      float y = z;
      scalar_set().activate(activation, 1, &y);
      const double real = in_reals(activation, static_cast<double>(z)), size = std::abs(static_cast<double>(z));
      double bound = 8 * u * std::abs(real);
      if (activation == Activation::kGelu) bound = size * (7.5e-8 + 8 * u);
      if (activation == Activation::kGeluTanh) bound = 80 * u * std::abs(real) + size * std::exp(-18.0) * u;
      CHECK(std::abs(static_cast<double>(y) - real) <= bound);
    }
    float y = z;
    scalar_set().softcap(30.0f, 1, &y);
    // tanh as (1 - t) / (1 + t): six roundings of at most 1, and those of t.
    CHECK(std::abs(static_cast<double>(y) - 30 * std::tanh(static_cast<double>(z) / 30)) <= 30 * 8 * u);
  }
}

// The mean errs by n / 16 + 5 roundings of the sum of magnitudes; the rest as for rms_norm.
TEST("the layer norm is near the real numbers, at every length") {
  for (const std::size_t n : {1, 7, 16, 17, 24, 40, 100}) {
    std::vector<float> x = normals(n), weight = normals(n), bias = normals(n), y(n);
    for (float& value : x) value += 3.0f;
    scalar_set().layer_norm(x.data(), weight.data(), bias.data(), static_cast<int64_t>(n), 1e-5f, y.data());
    double mean = 0, square = 0;
    for (const float value : x) mean += static_cast<double>(value) / static_cast<double>(n);
    for (const float value : x) square += std::pow(static_cast<double>(value) - mean, 2) / static_cast<double>(n);
    const double deviation = std::sqrt(square + 1e-5), u = 0x1p-24, off = (static_cast<double>(n) / 16 + 20) * u;
    for (std::size_t i = 0; i < n; ++i) {
      const double scaled = (static_cast<double>(x[i]) - mean) / deviation * static_cast<double>(weight[i]);
      const double slack = off * (std::abs(scaled) + 8 / deviation * std::abs(static_cast<double>(weight[i])) +
                                  std::abs(static_cast<double>(bias[i])));
      CHECK(std::abs(static_cast<double>(y[i]) - scaled - static_cast<double>(bias[i])) <= 4 * slack);
    }
  }
}

}  // namespace
}  // namespace cpuinfer

int main() { return check::run_all(); }
