// Times sequential reads of a working set by a worker team.
#include "core/bandwidth.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <new>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "core/error.h"
#include "core/worker_team.h"

namespace cpuinfer {

namespace {

using Clock = std::chrono::steady_clock;

// 16 bytes, so that the baseline instruction set loads them at once.  Eight independent sums: one 16-byte load and add
// per cycle and more, several times what any memory delivers to a core.
using Vector = uint64_t __attribute__((vector_size(16)));
constexpr int64_t kSums = 8;
constexpr int64_t kStride = kSums * static_cast<int64_t>(sizeof(Vector));

constexpr int64_t kSmallestPart = 4096;  // bytes of a thread: below, loop overhead is what is measured
// Bytes read between two looks at the clock, at least: a millisecond or so, against microseconds to start a pass.
constexpr int64_t kBytesPerPass = int64_t{32} << 20;

void read_all(const Vector* data, int64_t bytes) noexcept {
  Vector sums[kSums] = {};
  const int64_t vectors = bytes / static_cast<int64_t>(sizeof(Vector));
  for (int64_t i = 0; i < vectors; i += kSums) {
    for (int64_t s = 0; s < kSums; ++s) sums[s] += data[i + s];
  }
  uint64_t total = 0;
  for (const Vector& sum : sums) total += sum[0] + sum[1];
  // The compiler must take the total for used, and may not carry loads over from one sweep to the next.
  asm volatile("" : : "r"(total) : "memory");
}

void check(int64_t bytes, int threads, double seconds) {
  if (threads < 1 || threads > 1024) {
    throw Error(Fault::kInvalid, "threads: " + std::to_string(threads) + ", expected 1 to 1024");
  }
  if (bytes < threads * kSmallestPart) {
    throw Error(Fault::kInvalid, "bytes: " + std::to_string(bytes) + ", expected at least " +
                                     std::to_string(threads * kSmallestPart) + " for " + std::to_string(threads) +
                                     " threads");
  }
  if (!(seconds > 0 && seconds <= 60)) {
    throw Error(Fault::kInvalid, "seconds: " + std::to_string(seconds) + ", expected more than 0 and at most 60");
  }
  // The system promises more memory than it has and ends a process that takes the promise up.
  const int64_t installed = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  if (bytes > installed) {
    throw Error(Fault::kMemory,
                "a working set of " + std::to_string(bytes) + " bytes: this machine has " + std::to_string(installed));
  }
}

// One part per thread, allocated and first written by that thread, so that it lies in the memory nearest to it.
std::vector<Buffer> allocate(WorkerTeam& team, int64_t part) {
  std::vector<Buffer> parts(static_cast<std::size_t>(team.size()));
  auto body = [&](int worker) noexcept {
    try {
      parts[static_cast<std::size_t>(worker)] = Buffer(static_cast<std::size_t>(part));
    } catch (const std::bad_alloc&) {  // the part stays empty
    }
  };
  team.run(body);
  for (const Buffer& buffer : parts) {
    if (buffer.bytes() == 0) {
      throw Error(Fault::kMemory, "no memory for a working set of " + std::to_string(part * team.size()) + " bytes");
    }
  }
  return parts;
}

}  // namespace

double read_bandwidth(int64_t bytes, int threads, double seconds) {
  check(bytes, threads, seconds);
  WorkerTeam team(threads);
  const int64_t part = bytes / threads / kStride * kStride;
  const std::vector<Buffer> parts = allocate(team, part);
  const int64_t sweeps = std::max<int64_t>(1, kBytesPerPass / (part * threads));
  auto pass = [&](int worker) noexcept {
    const Vector* data = parts[static_cast<std::size_t>(worker)].as<Vector>();
    for (int64_t sweep = 0; sweep < sweeps; ++sweep) read_all(data, part);
  };
  team.run(pass);  // untimed: fills the caches, wakes the workers
  double best = 0;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  do {
    const auto begin = Clock::now();
    team.run(pass);
    const double elapsed = std::chrono::duration<double>(Clock::now() - begin).count();
    best = std::max(best, static_cast<double>(sweeps * part * threads) / elapsed);
  } while (Clock::now() < end);
  return best;
}

}  // namespace cpuinfer
