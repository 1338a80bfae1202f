// Shares out the work of a step: phases of items that any worker may run, each phase once the one before is complete.
//
// Workers wait for items, never for each other: one that the system has taken off its processor holds up only the item
// it is at, and the others do its share.  When it returns it walks through phases long complete, whose claims all fail.
// So what a phase reads must be read by its items, or after settle().
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <vector>

#include "core/buffer.h"

namespace cpuinfer {

class Phases {
 public:
  // Room for `most` phases of a step.
  Phases(int workers, std::size_t most);

  // Called by one thread before the workers start: all phases are to come again.
  void reset() noexcept;

  // Called by every worker with the same items: body(item) for some of them; returns when none is left to claim.
  // A worker's first choice are neighbours, the same in every step, so that they stay in the caches near it.
  template <typename Body>
  void run(int worker, int64_t items, const Body& body) noexcept {
    int64_t finished = 0;
    for (int64_t item; (item = claim(worker, items)) >= 0; ++finished) {
      if (finished == 0) settle(worker);
      if (!abandoned()) body(item);
    }
    finish(worker, items, finished);
  }

  // Returns when the phase before is complete: what it wrote can be read.
  void settle(int worker) noexcept;

  // Items still to come are counted as done, but not run.
  void abandon() noexcept { abandoned_.store(true, std::memory_order_relaxed); }
  bool abandoned() const noexcept { return abandoned_.load(std::memory_order_relaxed); }

  // Whether any worker waited for the items of another so long that it slept.
  bool held_up() const noexcept { return held_up_.load(std::memory_order_relaxed); }

 private:
  using Count = std::atomic<uint32_t>;
  static constexpr std::size_t kPerLine = kCacheLine / sizeof(Count);
  struct alignas(kCacheLine) Line {
    std::array<Count, kPerLine> counts{};
  };
  struct alignas(kCacheLine) Cursor {
    std::size_t phase = 0;
    uint32_t items_before = 0;  // of the phase before
  };

  // An item, or -1 if all are claimed: of the worker's own, then of what the others have left.
  int64_t claim(int worker, int64_t items) noexcept {
    const std::size_t phase = cursor(worker).phase;
    const auto workers = static_cast<int64_t>(cursors_.size());
    int64_t owner = worker;
    for (int64_t tried = 0; tried < workers; ++tried, owner = owner + 1 == workers ? 0 : owner + 1) {
      const int64_t begin = items * owner / workers, end = items * (owner + 1) / workers;
      Count& taken = count(taken_, static_cast<std::size_t>(owner) * lines_, phase);
      if (begin + taken.load(std::memory_order_relaxed) >= end) continue;
      const int64_t item = begin + taken.fetch_add(1, std::memory_order_relaxed);
      if (item < end) return item;
    }
    return -1;
  }
  void finish(int worker, int64_t items, int64_t finished) noexcept;

  Cursor& cursor(int worker) noexcept { return cursors_[static_cast<std::size_t>(worker)]; }
  static Count& count(std::vector<Line>& lines, std::size_t first, std::size_t phase) noexcept {
    return lines[first + phase / kPerLine].counts[phase % kPerLine];
  }

  std::size_t lines_;
  std::vector<Cursor> cursors_;
  std::vector<Line> taken_;  // [worker][phase]: how many of the items set aside for a worker are claimed
  std::vector<Line> done_;   // [phase]: items run; neighbours may share a line, for one is waited for at a time
  std::atomic<bool> abandoned_{false}, held_up_{false};
};

}  // namespace cpuinfer
