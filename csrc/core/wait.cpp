// The ladder of a wait, with its times.
#include "core/wait.h"

#include <sched.h>

#include <chrono>

namespace cpuinfer {
namespace {

// A pause is 40 to 140 cycles: some 30 to 100 microseconds, longer than workers are apart in undisturbed work.
constexpr int kSpins = 2000;
// Waking a sleeper can take hundreds of microseconds on a virtual machine.  If one worker slept at every hiccup of
// another, each wait would cost a wake-up; yielding instead is nearly free on an idle core and polite on a busy one.
constexpr auto kYieldTime = std::chrono::milliseconds(1);

}  // namespace

bool wait_while(const std::atomic<uint32_t>& value, uint32_t seen) noexcept {
  const auto same = [&] { return value.load(std::memory_order_acquire) == seen; };
  for (int i = 0; i < kSpins; ++i) {
    if (!same()) return false;
    __builtin_ia32_pause();
  }
  const auto patience = std::chrono::steady_clock::now() + kYieldTime;
  while (std::chrono::steady_clock::now() < patience) {
    if (!same()) return false;
    sched_yield();
  }
  value.wait(seen, std::memory_order_acquire);
  return true;
}

}  // namespace cpuinfer
