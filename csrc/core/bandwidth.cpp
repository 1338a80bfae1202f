// Measures read bandwidth with loads of the baseline instruction set: enough of them in flight to saturate memory.
#include "core/bandwidth.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "core/error.h"
#include "core/worker_team.h"

namespace cpuinfer {

namespace {

constexpr int64_t kLeastShare = 4096;              // bytes a thread
constexpr int64_t kPassBytes = int64_t{64} << 20;  // some milliseconds: the barriers around cost little
constexpr std::size_t kLeastPasses = 3;
constexpr int64_t kSums = 8;  // independent, so that no load waits for an addition

using Vector = uint64_t __attribute__((vector_size(16)));
constexpr int64_t kRuns = 8;
constexpr int64_t kBlock = kRuns * kSums * static_cast<int64_t>(sizeof(Vector));  // bytes

using Clock = std::chrono::steady_clock;

void check(int64_t bytes, int threads, double seconds) {
  const auto require = [](bool holds, const std::string& message) {
    if (!holds) throw Error(Fault::kInvalid, message);
  };
  require(threads >= 1 && threads <= kMostWorkers,
          "threads: " + std::to_string(threads) + ", expected 1 to " + std::to_string(kMostWorkers));
  require(seconds > 0 && seconds <= 60, "seconds: " + std::to_string(seconds) + ", expected more than 0, at most 60");
  require(bytes / threads >= kLeastShare, "bytes: " + std::to_string(bytes) + " for " + std::to_string(threads) +
                                              " threads, expected at least " + std::to_string(kLeastShare) + " each");
}

// Reads `bytes` bytes, a multiple of kBlock, as kRuns runs side by side, which processors fetch ahead faster than one.
void read_all(const Vector* data, int64_t bytes) noexcept {
  Vector sums[kSums] = {};
  const int64_t run = bytes / kRuns / static_cast<int64_t>(sizeof(Vector));
  for (const Vector* end = data + run; data < end; data += kSums) {
    for (int64_t at = 0; at < kRuns * run; at += run) {
      for (int64_t lane = 0; lane < kSums; ++lane) sums[lane] += data[at + lane];
    }
  }
  uint64_t total = 0;
  for (const Vector& sum : sums) total += sum[0] + sum[1];
  asm volatile("" : : "r"(total) : "memory");  // the total is used, and the next sweep must read again
}

// A share for each thread, of the memory that weights live in (Buffer asks for huge pages).  Each thread allocates and
// writes its own: the kernel then gives it memory near the thread.
std::vector<Buffer> allocate(WorkerTeam& team, int64_t share) {
  const int64_t bytes = share * team.size();
  const Error refusal(Fault::kMemory, "a working set of " + std::to_string(bytes) + " bytes cannot be allocated");
  // Promised memory that does not exist is refused here: taking it up would end the process.
  if (bytes / sysconf(_SC_PAGESIZE) > sysconf(_SC_PHYS_PAGES)) throw refusal;
  std::vector<Buffer> shares(static_cast<std::size_t>(team.size()));
  auto body = [&](int worker) noexcept {
    try {
      Buffer& own = shares[static_cast<std::size_t>(worker)];
      own = Buffer(static_cast<std::size_t>(share));
      std::memset(own.as<void>(), 1, own.bytes());  // else all its pages would be one page of zeros
    } catch (const std::bad_alloc&) {               // the share stays empty
    }
  };
  team.run(body);
  for (const Buffer& buffer : shares) {
    if (buffer.bytes() == 0) throw refusal;
  }
  return shares;
}

}  // namespace

double read_bandwidth(int64_t bytes, int threads, double seconds) {
  check(bytes, threads, seconds);
  WorkerTeam team(threads);
  const int64_t share = bytes / threads / kBlock * kBlock;
  const int64_t total = share * threads;
  const std::vector<Buffer> shares = allocate(team, share);

  const int64_t sweeps = std::max<int64_t>(1, kPassBytes / total);
  Clock::duration pass{};
  auto read = [&](int worker) noexcept {
    const Vector* data = shares[static_cast<std::size_t>(worker)].as<Vector>();
    team.barrier();
    const auto start = Clock::now();
    team.barrier();  // nobody reads before the clock of worker 0 runs: it may lose its processor in between
    for (int64_t i = 0; i < sweeps; ++i) read_all(data, share);
    team.barrier();
    if (worker == 0) pass = Clock::now() - start;
  };
  const auto deadline = Clock::now() + std::chrono::duration<double>(seconds);
  std::vector<Clock::duration> passes;
  while (passes.size() < kLeastPasses || Clock::now() < deadline) {
    team.run(read);
    passes.push_back(pass);
  }
  const auto median = passes.begin() + static_cast<std::ptrdiff_t>(passes.size() / 2);
  std::nth_element(passes.begin(), median, passes.end());
  return static_cast<double>(total * sweeps) / std::chrono::duration<double>(*median).count();
}

}  // namespace cpuinfer
