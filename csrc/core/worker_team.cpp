// Hand-over and barrier of the worker team.
#include "core/worker_team.h"

#include <unistd.h>

#include <string>
#include <system_error>
#include <utility>

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
  work_ = std::vector<Signal>(static_cast<std::size_t>(workers));
  threads_.reserve(static_cast<std::size_t>(workers - 1));
  try {
    for (int worker = 1; worker < workers; ++worker) threads_.emplace_back([this, worker] { serve(worker); });
  } catch (const std::system_error& error) {
    stop();
    throw Error(Fault::kInvalid, "threads: the system refused thread " + std::to_string(threads_.size() + 1) + " of " +
                                     std::to_string(workers) + ": " + error.what());
  }
}

WorkerTeam::~WorkerTeam() {
  if (getpid() != process_) {
    // Forked: these threads never ran here, and the C library gives their handles to new ones.  So nothing is done to
    // them, and they are never destroyed.
    new std::vector<std::thread>(std::move(threads_));
    return;
  }
  stop();
}

void WorkerTeam::stop() noexcept {
  stopping_.store(true, std::memory_order_release);
  for (Signal& work : work_) advance(work.value);
  for (std::thread& thread : threads_) thread.join();
}

bool WorkerTeam::start(Entry entry, void* context, int active) {
  if (getpid() != process_) {
    throw Error(Fault::kInvalid,
                "this model was loaded before a fork and its threads live in the parent process: load it in the child");
  }
  entry_ = entry;
  context_ = context;
  active_ = active;
  for (int worker = 1; worker < active; ++worker) advance(work_[static_cast<std::size_t>(worker)].value);
  entry(context, 0);
  return barrier();
}

void WorkerTeam::serve(int worker) noexcept {
  for (uint32_t seen = 0;; ++seen) {
    wait_while(work_[static_cast<std::size_t>(worker)].value, seen);
    if (stopping_.load(std::memory_order_acquire)) return;
    entry_(context_, worker);
    barrier();
  }
}

bool WorkerTeam::barrier() noexcept {
  const auto all = static_cast<uint32_t>(active_);  // read before arriving: after it the next piece of work may begin
  if (all == 1) return false;
  const uint32_t generation = passed_.value.load(std::memory_order_acquire);
  if (arrived_.value.fetch_add(1, std::memory_order_acq_rel) + 1 == all) {
    arrived_.value.store(0, std::memory_order_relaxed);
    advance(passed_.value);
    return false;
  }
  return wait_while(passed_.value, generation);
}

}  // namespace cpuinfer
