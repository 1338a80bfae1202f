// Hand-over, barrier and the spin, yield, sleep ladder of the worker team.
#include "core/worker_team.h"

#include <sched.h>
#include <unistd.h>

#include <chrono>
#include <string>
#include <system_error>

#include "core/error.h"

namespace cpuinfer {
namespace {

// A pause is 40 to 140 cycles: some 30 to 100 microseconds, longer than workers are apart in undisturbed work.
constexpr int kSpins = 2000;
// Waking a sleeper can take hundreds of microseconds on a virtual machine.  If one worker slept at every hiccup of
// another, each barrier would cost a wake-up; yielding instead is nearly free on an idle core and polite on a busy one.
constexpr auto kYieldTime = std::chrono::milliseconds(2);

void pause_cpu() noexcept { __builtin_ia32_pause(); }

// Returns when the signal no longer has the value seen.
void wait_change(WorkerTeam::Signal& signal, uint32_t seen) noexcept {
  for (int i = 0; i < kSpins; ++i) {
    if (signal.value.load(std::memory_order_acquire) != seen) return;
    pause_cpu();
  }
  const auto patience = std::chrono::steady_clock::now() + kYieldTime;
  while (std::chrono::steady_clock::now() < patience) {
    if (signal.value.load(std::memory_order_acquire) != seen) return;
    sched_yield();
  }
  signal.value.wait(seen, std::memory_order_acquire);
}

void advance(WorkerTeam::Signal& signal) noexcept {
  signal.value.fetch_add(1, std::memory_order_acq_rel);
  signal.value.notify_all();
}

}  // namespace

WorkerTeam::WorkerTeam(int workers) : size_(workers), process_(getpid()) {
  if (workers < 1 || workers > kMostWorkers) {
    throw Error(Fault::kInvalid,
                "threads: " + std::to_string(workers) + ", expected 1 to " + std::to_string(kMostWorkers));
  }
  threads_.reserve(static_cast<std::size_t>(workers - 1));
  try {
    for (int worker = 1; worker < workers; ++worker) threads_.emplace_back([this, worker] { serve(worker); });
  } catch (const std::system_error& error) {
    stopping_.store(true, std::memory_order_release);
    advance(work_);
    for (std::thread& thread : threads_) thread.join();
    throw Error(Fault::kInvalid, "threads: the system refused thread " + std::to_string(threads_.size() + 1) + " of " +
                                     std::to_string(workers) + ": " + error.what());
  }
}

WorkerTeam::~WorkerTeam() {
  if (getpid() != process_) {  // forked: these threads never ran here
    for (std::thread& thread : threads_) thread.detach();
    return;
  }
  stopping_.store(true, std::memory_order_release);
  advance(work_);
  for (std::thread& thread : threads_) thread.join();
}

void WorkerTeam::start(Entry entry, void* context) {
  if (getpid() != process_) {
    throw Error(Fault::kInvalid,
                "this model was loaded before a fork and its threads live in the parent process: load it in the child");
  }
  entry_ = entry;
  context_ = context;
  if (size_ > 1) advance(work_);
  entry(context, 0);
  barrier();
}

void WorkerTeam::serve(int worker) noexcept {
  for (uint32_t seen = 0;; ++seen) {
    wait_change(work_, seen);
    if (stopping_.load(std::memory_order_acquire)) return;
    entry_(context_, worker);
    barrier();
  }
}

void WorkerTeam::barrier() noexcept {
  if (size_ == 1) return;
  const uint32_t generation = passed_.value.load(std::memory_order_acquire);
  if (arrived_.value.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(size_)) {
    arrived_.value.store(0, std::memory_order_relaxed);
    advance(passed_);
  } else {
    wait_change(passed_, generation);
  }
}

}  // namespace cpuinfer
