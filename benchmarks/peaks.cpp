// Measures the most multiplications and additions a second that an instruction set does on some threads at once.
// Arguments: threads, then names.  Prints a line for each: the name, operations a second (of the best round).
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr int kRounds = 100;  // of some milliseconds: the best is then undisturbed even on a machine that is not idle
constexpr int kChains = 12;   // independent: more than latency times throughput of any processor so far
constexpr int64_t kSteps = int64_t{1} << 19;
constexpr int64_t kTileSteps = int64_t{1} << 17;
constexpr long kRequestState = 0x1023, kTileData = 18;  // arch_prctl: Linux arch/x86/xstate.rst

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t columns[16] = {};  // bytes
  uint8_t rows[16] = {};
};

#define CPUINFER_VECTOR_PEAK(name, isa, Vector, set, operation)                             \
  __attribute__((target(isa))) void name() {                                                \
    Vector sum[kChains] = {};                                                               \
    Vector w = set(3), x = set(1);                                                          \
    for (int64_t i = 0; i < kSteps; ++i) {                                                  \
      for (auto& chain : sum) {                                                             \
        chain = operation;                                                                  \
        asm volatile("" : "+v"(w), "+v"(x)); /* else equal chains become one */             \
      }                                                                                     \
    }                                                                                       \
    for (auto& chain : sum) asm volatile("" : : "v"(chain)); /* else nothing is computed */ \
  }

CPUINFER_VECTOR_PEAK(avx2, "avx2", __m256i, _mm256_set1_epi8, _mm256_add_epi16(chain, _mm256_maddubs_epi16(w, x)))
CPUINFER_VECTOR_PEAK(avx512_vnni, "avx512f,avx512vnni", __m512i, _mm512_set1_epi8, _mm512_dpbusd_epi32(chain, w, x))

#undef CPUINFER_VECTOR_PEAK

// Four sums from two tiles of either side.
#define CPUINFER_TILE_PEAK(name, isa, product)                                               \
  __attribute__((target("amx-tile," isa))) void name() {                                     \
    TileConfig config;                                                                       \
    for (int tile = 0; tile < 8; ++tile) {                                                   \
      config.columns[tile] = 64;                                                             \
      config.rows[tile] = 16;                                                                \
    }                                                                                        \
    asm volatile("" : : "r"(&config) : "memory"); /* else GCC 12 stores but 8 bytes of it */ \
    _tile_loadconfig(&config);                                                               \
    _tile_zero(0);                                                                           \
    _tile_zero(1);                                                                           \
    _tile_zero(2);                                                                           \
    _tile_zero(3);                                                                           \
    _tile_zero(4);                                                                           \
    _tile_zero(5);                                                                           \
    _tile_zero(6);                                                                           \
    _tile_zero(7);                                                                           \
    for (int64_t i = 0; i < kTileSteps; ++i) {                                               \
      product(0, 4, 6);                                                                      \
      product(1, 4, 7);                                                                      \
      product(2, 5, 6);                                                                      \
      product(3, 5, 7);                                                                      \
    }                                                                                        \
    _tile_release();                                                                         \
  }

CPUINFER_TILE_PEAK(amx_int8, "amx-int8", _tile_dpbssd)
CPUINFER_TILE_PEAK(amx_bf16, "amx-bf16", _tile_dpbf16ps)

#undef CPUINFER_TILE_PEAK

struct Peak {
  const char* name;
  void (*run)();
  double operations;  // of one run
};

constexpr Peak kPeaks[] = {
    {"avx2", avx2, 64.0 * kChains* kSteps},
    {"avx512_vnni", avx512_vnni, 128.0 * kChains* kSteps},
    {"amx_bf16", amx_bf16, 4 * 2.0 * 16 * 16 * 32 * kTileSteps},
    {"amx_int8", amx_int8, 4 * 2.0 * 16 * 16 * 64 * kTileSteps},
};

// Seconds of one run on each thread, from the first to begin to the last to end.
double time_together(const Peak& peak, int threads) {
  using Clock = std::chrono::steady_clock;
  std::atomic<int> ready{0};
  std::vector<Clock::time_point> begins(static_cast<std::size_t>(threads)), ends(begins.size());
  std::vector<std::thread> team;
  for (std::size_t i = 0; i < begins.size(); ++i) {
    team.emplace_back([&, i] {
      ++ready;
      while (ready < threads) std::this_thread::yield();
      begins[i] = Clock::now();
      peak.run();
      ends[i] = Clock::now();
    });
  }
  for (auto& thread : team) thread.join();
  const auto first = *std::min_element(begins.begin(), begins.end());
  return std::chrono::duration<double>(*std::max_element(ends.begin(), ends.end()) - first).count();
}

}  // namespace

int main(int count, char** arguments) {
  const int threads = count > 1 ? std::atoi(arguments[1]) : 0;
  if (threads < 1) return 2;
  for (int i = 2; i < count; ++i) {
    const std::string name = arguments[i];
    if (name.starts_with("amx") && syscall(SYS_arch_prctl, kRequestState, kTileData) != 0) continue;
    for (const Peak& peak : kPeaks) {
      if (name != peak.name) continue;
      double best = time_together(peak, threads);
      for (int round = 1; round < kRounds; ++round) best = std::min(best, time_together(peak, threads));
      std::printf("%s %.0f\n", peak.name, threads * peak.operations / best);
    }
  }
}
