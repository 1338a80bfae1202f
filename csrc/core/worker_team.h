// A persistent team of threads that walks one piece of work together; the caller is worker 0.
//
// Between pieces of work they wait as wait.h says: an idle process uses no processor time.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "core/buffer.h"

namespace cpuinfer {

constexpr int kMostWorkers = 1024;

class WorkerTeam {
 public:
  // Throws Error(kInvalid) unless 1 <= workers <= kMostWorkers.
  explicit WorkerTeam(int workers);
  ~WorkerTeam();
  WorkerTeam(const WorkerTeam&) = delete;
  WorkerTeam& operator=(const WorkerTeam&) = delete;

  int size() const noexcept { return size_; }

  // Calls body(worker) once on each of the first `active` workers and returns when all have returned: true if that wait
  // was so long that the caller slept.  body must not throw.  Throws Error(kInvalid) in a process forked after the team
  // was made: its threads exist only in the parent.
  template <typename Body>
  bool run(Body& body, int active) {
    return start([](void* context, int worker) noexcept { (*static_cast<Body*>(context))(worker); }, &body, active);
  }
  template <typename Body>
  void run(Body& body) {
    run(body, size_);
  }

  // Inside run: returns when every active worker has called it; true if the wait was long.
  bool barrier() noexcept;

 private:
  // A hand-over or barrier: a counter on a cache line of its own, on which one can wait for a change.
  struct alignas(kCacheLine) Signal {
    std::atomic<uint32_t> value{0};
  };
  using Entry = void (*)(void* context, int worker) noexcept;

  bool start(Entry entry, void* context, int active);
  void serve(int worker) noexcept;
  void stop() noexcept;

  int size_;
  int process_;
  int active_ = 0;
  Entry entry_ = nullptr;
  void* context_ = nullptr;
  std::atomic<bool> stopping_{false};
  std::vector<Signal> work_;  // [worker]: generation of the piece of work handed to it
  Signal arrived_;            // workers at the barrier
  Signal passed_;             // generation of the barrier
  std::vector<std::thread> threads_;
};

}  // namespace cpuinfer
