// The end of a phase, the wait for one, and the return to the first.
#include "plan/phases.h"

#include <algorithm>

#include "core/wait.h"

namespace cpuinfer {

Phases::Phases(int workers, std::size_t most)
    : lines_((most + kPerLine - 1) / kPerLine),
      cursors_(static_cast<std::size_t>(workers)),
      taken_(static_cast<std::size_t>(workers) * lines_),
      done_(lines_) {}

void Phases::reset() noexcept {
  std::size_t used = 0;
  for (Cursor& cursor : cursors_) {
    used = std::max(used, (cursor.phase + kPerLine - 1) / kPerLine);
    cursor = {};
  }
  const auto clear = [used](auto line) {
    for (std::size_t i = 0; i < used; ++i, ++line) {
      for (Count& count : line->counts) count.store(0, std::memory_order_relaxed);
    }
  };
  for (std::size_t worker = 0; worker < cursors_.size(); ++worker) {
    clear(taken_.begin() + static_cast<std::ptrdiff_t>(worker * lines_));
  }
  clear(done_.begin());
  abandoned_.store(false, std::memory_order_relaxed);
  held_up_.store(false, std::memory_order_relaxed);
}

void Phases::settle(int worker) noexcept {
  const Cursor& at = cursor(worker);
  if (at.phase == 0) return;
  const Count& done = count(done_, 0, at.phase - 1);
  for (uint32_t seen; (seen = done.load(std::memory_order_acquire)) != at.items_before;) {
    if (wait_while(done, seen)) held_up_.store(true, std::memory_order_relaxed);
  }
}

void Phases::finish(int worker, int64_t items, int64_t finished) noexcept {
  Cursor& at = cursor(worker);
  Count& done = count(done_, 0, at.phase);
  const auto mine = static_cast<uint32_t>(finished), all = static_cast<uint32_t>(items);
  if (mine > 0 && done.fetch_add(mine, std::memory_order_acq_rel) + mine == all) done.notify_all();
  ++at.phase;
  at.items_before = all;
}

}  // namespace cpuinfer
