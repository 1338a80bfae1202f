// Hand-over and barrier of the worker team.
#include "core/worker_team.h"

#include <unistd.h>

#include <string>
#include <system_error>

#include "core/error.h"
#include "core/wait.h"

namespace cpuinfer {
namespace {

void advance(std::atomic<uint32_t>& value) noexcept {
  value.fetch_add(1, std::memory_order_acq_rel);
  value.notify_all();
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
    advance(work_.value);
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
  advance(work_.value);
  for (std::thread& thread : threads_) thread.join();
}

void WorkerTeam::start(Entry entry, void* context) {
  if (getpid() != process_) {
    throw Error(Fault::kInvalid,
                "this model was loaded before a fork and its threads live in the parent process: load it in the child");
  }
  entry_ = entry;
  context_ = context;
  if (size_ > 1) advance(work_.value);
  entry(context, 0);
  barrier();
}

void WorkerTeam::serve(int worker) noexcept {
  for (uint32_t seen = 0;; ++seen) {
    wait_while(work_.value, seen);
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
    advance(passed_.value);
  } else {
    wait_while(passed_.value, generation);
  }
}

}  // namespace cpuinfer
