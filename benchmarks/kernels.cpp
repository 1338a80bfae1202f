// Times the matrix products of every kernel set this machine runs, on one thread, beside how fast memory is read.
// Prints one line per measurement, comma-separated: set, encoding, rows, bytes of weights, number of weights, seconds
// (median), spread.  With arguments, products are timed for the sets named alone.
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "core/cpu.h"
#include "kernels/blocks.h"
#include "kernels/dispatch.h"
#include "kernels/pack.h"
#include "plan/worker_room.h"

namespace {

using namespace cpuinfer;

constexpr int kRepeats = 15;

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

void report(const char* set, const char* what, int rows, double bytes, double weights, const Timing& timing,
            double repeats = 1) {
  std::printf("%s,%s,%d,%.0f,%.0f,%.9f,%.9f\n", set, what, rows, bytes, weights, timing.median / repeats,
              timing.spread / repeats);
  std::fflush(stdout);
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
void time_product(const KernelSet& set, const PackedMatrix& matrix, const char* name, int rows) {
  const Weights& w = matrix.view();
  const auto count = static_cast<std::size_t>(rows * w.k), groups = count / kGroup;
  std::vector<float> x(count), scale(groups);
  std::vector<int8_t> codes(count);
  std::vector<int32_t> sum(groups * 2);
  for (std::size_t i = 0; i < count; ++i) x[i] = static_cast<float>(i * 37 % 101) - 50.0f;
  for (int row = 0; row < rows; row += kTileRows) {
    const int64_t at = row * w.k;
    set.quantize(
        &x[static_cast<std::size_t>(at)], w.k, w.k,
        {std::min(kTileRows, rows - row), codes.data() + at, scale.data() + at / kGroup, sum.data() + at / kHalf});
  }
  const int64_t panels = matrix.panels();
  std::vector<float> y(static_cast<std::size_t>(rows * kPanelsPerItem * kLanes));
  const QuantizedRows first{std::min(rows, kTileRows), codes.data(), scale.data(), sum.data()};
  const auto bytes = static_cast<double>(matrix.bytes());
  const int repeats = std::max(1, static_cast<int>(1e9 / (static_cast<double>(w.n * w.k) * std::max(rows, 4))));
  const Timing timing = measure([&] {
    for (int i = 0; i < repeats; ++i) {
      for (int64_t panel = 0; panel < panels; panel += kPanelsPerItem) {
        set.gemm({&w, panel, std::min(panels, panel + kPanelsPerItem), first, nullptr, 0, rows, y.data(),
                  kPanelsPerItem * kLanes});
      }
    }
  });
  report(set.name, name, rows, bytes, static_cast<double>(w.n * w.k), timing, repeats);
}

// Steps that grow outwards, as those of NF4 do; which numbers they are takes no time.
const std::vector<float> kCodeBook = {-1.0f, -0.7f, -0.53f, -0.39f, -0.28f, -0.18f, -0.09f, 0.0f,
                                      0.08f, 0.16f, 0.25f,  0.34f,  0.44f,  0.56f,  0.72f,  1.0f};

PackedMatrix make_matrix(Encoding encoding, int64_t n, int64_t k) {
  const bool integers = block_layout(encoding) == nullptr;
  PackOptions options;
  if (encoding == Encoding::kInt4) options.zero = 8;
  if (encoding == Encoding::kInt8) options.zero = 128;
  if (encoding == Encoding::kTable4) options.table = kCodeBook;
  PackedMatrix matrix(encoding, n, k, options);
  if (!integers) {  // all fp16 scales are 0x2c2c, which is no subnormal number
    const std::vector<uint8_t> blocks(static_cast<std::size_t>(kLanes * matrix.row_bytes()), 0x2c);
    for (int64_t row = 0; row < n; row += kLanes) {
      matrix.set_block_rows(row, std::min<int64_t>(kLanes, n - row), blocks.data());
    }
    return matrix;
  }
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
  report("pack", name, 1, static_cast<double>(n * k), static_cast<double>(n * k), timing);
}

void time_reading(const char* name, std::size_t size) {
  Buffer block(size);
  std::memset(block.as<void>(), 1, block.bytes());  // else all its pages would be one page of zeros
  const std::span bytes(block.as<uint8_t>(), size);
  const auto amount = static_cast<double>(size);
  const int repeats = std::max(1, static_cast<int>(100e6 / amount));
  const Timing timing = measure([&] {
    for (int i = 0; i < repeats; ++i) sink = read_all(bytes);
  });
  report("read", name, 1, amount, 0, timing, repeats);
}

// Rows of whole pages on tile units, their conversion included, rows and panels cut as a plan does.
void time_tiles(const KernelSet& set, const PackedMatrix& matrix, const char* name, int rows) {
  const Weights& w = matrix.view();
  std::vector<float> x(static_cast<std::size_t>(rows * w.k)), y(kTileSweep * kTileStride);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 37 % 101) - 50.0f;
  Buffer tiles(static_cast<std::size_t>(rows * round_up(w.k, kGroup)) * sizeof(uint16_t));
  auto* read = tiles.as<uint16_t>();
  const auto products = static_cast<double>(w.n * w.k) * rows;
  const int repeats = std::max(1, static_cast<int>(4e9 / products));
  const Timing timing = measure([&] {
    for (int i = 0; i < repeats; ++i) {
      for (int64_t row = 0; row < rows; ++row) set.tiles->to_tiles(x.data() + row * w.k, w.k, rows, row, read);
      for (int64_t row = 0; row < rows; row += kTileSweep) {
        for (int64_t panel = 0; panel < matrix.panels(); panel += kTilePanels) {
          const int64_t end = std::min(matrix.panels(), panel + kTilePanels), most = rows - row;
          set.tiles->multiply({&w, panel, end, read, rows, row, std::min(most, kTileSweep), y.data(), kTileStride});
        }
      }
    }
  });
  report(set.name, name, rows, static_cast<double>(matrix.bytes()), static_cast<double>(w.n * w.k), timing, repeats);
}

void time_set(const KernelSet& set, const PackedMatrix& matrix, const char* name) {
  if (set.tiles != nullptr) {  // what else it has is another row's
    for (const int rows : {kMostRows, 8 * kMostRows}) time_tiles(set, matrix, name, rows);
    return;
  }
  for (const int rows : {1, 2, 4, kTileRows, 2 * kTileRows, kMostRows}) time_product(set, matrix, name, rows);
}

struct Case {
  Encoding encoding;
  const char* name;
};
constexpr Case kCases[] = {{Encoding::kInt4, "int4"},
                           {Encoding::kTable4, "table4"},
                           {Encoding::kInt8, "int8"},
                           {Encoding::kQ4K, "Q4_K"},
                           {Encoding::kQ6K, "Q6_K"}};

}  // namespace

int main(int count, char** arguments) {
  const std::vector<std::string> wanted(arguments + 1, arguments + count);
  const uint32_t features = cpu_info().features;
  if (wanted.empty()) {
    time_packing(Encoding::kInt4, "int4");
    time_packing(Encoding::kInt8, "int8");
  }
  for (const auto& [encoding, name] : kCases) {
    for (const int64_t n :
         {512, 32768}) {  // a matrix that stays in the second cache, and one that must come from memory
      const PackedMatrix matrix = make_matrix(encoding, n, 2048);
      if (features & kCpuAvx2) time_reading(name, static_cast<std::size_t>(matrix.bytes()));
      for (const KernelSet& set : kernel_sets()) {
        if (!missing_for(set, cpu_info()).empty()) continue;
        if (wanted.empty() ? set.needs == 0 : std::ranges::find(wanted, set.name) == wanted.end()) continue;
        time_set(set, matrix, name);
      }
    }
  }
}
