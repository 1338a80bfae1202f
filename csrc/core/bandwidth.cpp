// Measures read bandwidth with plain 64-bit loads: enough of them in flight to saturate memory on any x86-64.
#include "core/bandwidth.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <new>
#include <string>

#include "core/error.h"
#include "core/worker_team.h"

namespace cpuinfer {

namespace {

constexpr int64_t kLeastShare = 4096;              // bytes a thread
constexpr int64_t kPassBytes = int64_t{64} << 20;  // some milliseconds: the barriers around cost little
constexpr int kLeastPasses = 3;
constexpr int64_t kSums = 16;                                      // independent, so that no load waits for an addition
constexpr int64_t kWord = static_cast<int64_t>(sizeof(uint64_t));  // bytes

using Clock = std::chrono::steady_clock;

void check(int64_t bytes, int threads, double seconds) {
  const auto require = [](bool holds, const std::string& message) {
    if (!holds) throw Error(Fault::kInvalid, message);
  };
  require(threads >= 1 && threads <= 1024, "threads: " + std::to_string(threads) + ", expected 1 to 1024");
  require(seconds > 0 && seconds <= 60, "seconds: " + std::to_string(seconds) + ", expected more than 0, at most 60");
  require(bytes / threads >= kLeastShare, "bytes: " + std::to_string(bytes) + " for " + std::to_string(threads) +
                                              " threads, expected at least " + std::to_string(kLeastShare) + " each");
}

// Reads `count` words, a multiple of kSums.
void read_words(const uint64_t* words, int64_t count) noexcept {
  uint64_t sums[kSums] = {};
  for (int64_t i = 0; i < count; i += kSums) {
    for (int64_t lane = 0; lane < kSums; ++lane) sums[lane] += words[i + lane];
  }
  uint64_t sum = 0;
  for (const uint64_t lane : sums) sum += lane;
  asm volatile("" : : "r"(sum) : "memory");  // the sum is used, and the next sweep must read again
}

}  // namespace

double read_bandwidth(int64_t bytes, int threads, double seconds) {
  check(bytes, threads, seconds);
  const int64_t share = bytes / threads / kWord / kSums * kSums;  // words a thread
  const int64_t total = share * threads * kWord;
  const std::unique_ptr<uint64_t[]> words(new (std::nothrow) uint64_t[static_cast<std::size_t>(share * threads)]);
  if (!words) throw Error(Fault::kMemory, "a working set of " + std::to_string(bytes) + " bytes cannot be allocated");

  WorkerTeam team(threads);
  // Each thread writes its share first: the kernel then gives it memory near the thread.
  auto fill = [&](int worker) noexcept { std::fill_n(words.get() + worker * share, share, uint64_t{1}); };
  team.run(fill);

  const int64_t sweeps = std::max<int64_t>(1, kPassBytes / total);
  Clock::duration pass{};
  auto read = [&](int worker) noexcept {
    team.barrier();
    const auto start = Clock::now();
    team.barrier();  // nobody reads before the clock of worker 0 runs: it may lose its processor in between
    for (int64_t i = 0; i < sweeps; ++i) read_words(words.get() + worker * share, share);
    team.barrier();
    if (worker == 0) pass = Clock::now() - start;
  };
  const auto deadline = Clock::now() + std::chrono::duration<double>(seconds);
  auto best = Clock::duration::max();
  for (int done = 0; done < kLeastPasses || Clock::now() < deadline; ++done) {
    team.run(read);
    best = std::min(best, pass);
  }
  return static_cast<double>(total * sweeps) / std::chrono::duration<double>(best).count();
}

}  // namespace cpuinfer
