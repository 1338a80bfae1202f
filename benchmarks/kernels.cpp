// Times the matrix products of every kernel set this machine runs, on one thread, beside what the machine can do.
// Prints one line per measurement, comma-separated: set, encoding, rows, bytes of weights, seconds (median), spread.
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "core/cpu.h"
#include "kernels/dispatch.h"
#include "kernels/pack.h"

namespace {

using namespace cpuinfer;

constexpr int kRepeats = 15;
constexpr int64_t kSteps = int64_t{1} << 22;  // dot products per chain when measuring a peak

struct Timing {
  double median, spread;  // seconds; spread is the distance between the quartiles
};

template <typename Body>
Timing measure(Body body) {
  body();
  std::vector<double> seconds;
  for (int i = 0; i < kRepeats; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    body();
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  std::sort(seconds.begin(), seconds.end());
  return {seconds[kRepeats / 2], seconds[kRepeats * 3 / 4] - seconds[kRepeats / 4]};
}

void report(const char* set, const char* what, int rows, double amount, const Timing& timing, double repeats = 1) {
  std::printf("%s,%s,%d,%.0f,%.9f,%.9f\n", set, what, rows, amount, timing.median / repeats, timing.spread / repeats);
  std::fflush(stdout);
}

// Twelve independent chains, more than the latency times the throughput of any processor so far.
__attribute__((target("avx512f,avx512vnni"))) int peak_avx512() {
  __m512i sum[12] = {};
  __m512i w = _mm512_set1_epi8(3), x = _mm512_set1_epi8(1);
  for (int64_t i = 0; i < kSteps; ++i) {
    for (auto& chain : sum) {
      chain = _mm512_dpbusd_epi32(chain, w, x);
      asm volatile("" : "+v"(w), "+v"(x));  // else equal chains become one
    }
  }
  int total = 0;
  for (const auto& chain : sum) total += _mm512_cvtsi512_si32(chain);
  return total;
}

__attribute__((target("avx2"))) int peak_avx2() {
  __m256i sum[12] = {};
  __m256i w = _mm256_set1_epi8(3), x = _mm256_set1_epi8(1);
  for (int64_t i = 0; i < kSteps; ++i) {
    for (auto& chain : sum) {
      chain = _mm256_add_epi16(chain, _mm256_maddubs_epi16(w, x));
      asm volatile("" : "+x"(w), "+x"(x));
    }
  }
  int total = 0;
  for (const auto& chain : sum) total += _mm256_cvtsi256_si32(chain);
  return total;
}

__attribute__((target("avx2"))) int read_all(std::span<const uint8_t> bytes) {
  __m256i sum[4] = {};
  for (std::size_t i = 0; i + 128 <= bytes.size(); i += 128) {
    for (std::size_t j = 0; j < 4; ++j) {
      sum[j] = _mm256_xor_si256(sum[j], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(&bytes[i + 32 * j])));
    }
  }
  return _mm256_cvtsi256_si32(_mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3])));
}

volatile int sink;

// One sweep of `rows` activation rows over the matrix; small matrices are swept again and again.
void time_product(const KernelSet& set, const PackedMatrix& matrix, int rows) {
  const Weights& w = matrix.view();
  const bool nibbles = w.encoding == Encoding::kInt4;
  const auto count = static_cast<std::size_t>(rows * w.k), groups = count / kGroup;
  std::vector<float> x(count), scale(groups);
  std::vector<int8_t> codes(count);
  std::vector<int32_t> sum(groups * 2);
  for (std::size_t i = 0; i < count; ++i) x[i] = static_cast<float>(i * 37 % 101) - 50.0f;
  const QuantizedRows q{rows, codes.data(), scale.data(), sum.data()};
  set.quantize(x.data(), w.k, w.k, q);
  const int64_t panels = (w.n + kLanes - 1) / kLanes;
  std::vector<float> y(static_cast<std::size_t>(rows * panels * kLanes));
  const Gemm gemm{&w, 0, panels, q, nullptr, 0, rows, y.data(), panels * kLanes};
  const auto bytes = static_cast<double>(matrix.bytes());
  const int repeats = std::max(1, static_cast<int>(100e6 / bytes / rows));
  const Timing timing = measure([&] {
    for (int i = 0; i < repeats; ++i) set.gemm(gemm);
  });
  report(set.name, nibbles ? "int4" : "int8", rows, bytes, timing, repeats);
}

PackedMatrix make_matrix(Encoding encoding, int64_t n, int64_t k) {
  PackedMatrix matrix(encoding, n, k, {.zero = encoding == Encoding::kInt4 ? 8 : 128});
  std::vector<uint8_t> codes(static_cast<std::size_t>(kLanes * k));
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i * 7 % 16);
  const std::vector<uint16_t> scale(codes.size() / kGroup, 0x2c00);
  for (int64_t row = 0; row < n; row += kLanes) {
    matrix.set_integer_rows(row, std::min<int64_t>(kLanes, n - row), codes.data(), scale.data(), nullptr);
  }
  return matrix;
}

void time_packing(Encoding encoding, const char* name) {
  const int64_t n = 1536, k = 1536;
  PackedMatrix matrix(encoding, n, k, {.zero = 8});
  const std::vector<uint8_t> codes(static_cast<std::size_t>(n * k), 9);
  const std::vector<uint16_t> scale(codes.size() / kGroup, 0x2c00);
  const Timing timing = measure([&] { matrix.set_integer_rows(0, n, codes.data(), scale.data(), nullptr); });
  report("pack", name, 1, static_cast<double>(n * k), timing);
}

}  // namespace

int main() {
  const uint32_t features = cpu_info().features;
  if (features & kCpuAvx512Vnni) {
    report("peak", "avx512_vnni", 1, 12.0 * 128 * kSteps, measure([] { sink = peak_avx512(); }));
  }
  if (features & kCpuAvx2) report("peak", "avx2", 1, 12.0 * 64 * kSteps, measure([] { sink = peak_avx2(); }));
  time_packing(Encoding::kInt4, "int4");
  time_packing(Encoding::kInt8, "int8");
  for (const Encoding encoding : {Encoding::kInt4, Encoding::kInt8}) {
    for (const int64_t n : {encoding == Encoding::kInt4 ? 576 : 320, encoding == Encoding::kInt4 ? 76384 : 40448}) {
      const PackedMatrix matrix = make_matrix(encoding, n, 1536);
      if (features & kCpuAvx2) {
        Buffer block(static_cast<std::size_t>(matrix.bytes()));
        std::memset(block.as<void>(), 1, block.bytes());  // else all its pages would be one page of zeros
        const std::span bytes(block.as<uint8_t>(), block.bytes());
        const int repeats = std::max(1, static_cast<int>(100e6 / static_cast<double>(bytes.size())));
        report("read", encoding == Encoding::kInt4 ? "int4" : "int8", 1, static_cast<double>(bytes.size()),
               measure([&] {
                 for (int i = 0; i < repeats; ++i) sink = read_all(bytes);
               }),
               repeats);
      }
      for (const KernelSet& set : kernel_sets()) {
        if (!missing_for(set, cpu_info()).empty()) continue;
        time_product(set, matrix, 1);
        time_product(set, matrix, kTileRows);
      }
    }
  }
}
