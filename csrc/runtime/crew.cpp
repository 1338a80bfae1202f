// When to try fewer or more workers, and what to make of it.
#include "runtime/crew.h"

#include <algorithm>

namespace cpuinfer {
namespace {

constexpr int kTrialSteps = 6;
constexpr int kFewSteps = 2;  // of a trial that is slower by so much: more would be felt
constexpr double kMuchSlower = 1.25;
constexpr int kRemembered = 16;  // steps that a mean is about
constexpr Crew::Duration kLeastPatience = std::chrono::milliseconds(100), kMostPatience = std::chrono::seconds(3);

}  // namespace

void Crew::Mean::add(double value) noexcept {
  steps = std::min(steps + 1, kRemembered);
  seconds += (value - seconds) / steps;
}

void Crew::start_trial(int active) noexcept {
  before_ = active_;
  active_ = active;
  tried_ = {};
}

void Crew::report(int rows, Duration duration, bool held_up, Time now) noexcept {
  if (workers_ == 1) return;
  if (rows != rows_) {  // another kind of step: nothing to compare with
    rows_ = rows;
    usual_ = tried_ = {};
    if (before_ != 0) active_ = before_;
    before_ = 0;
  }
  const double seconds = std::chrono::duration<double>(duration).count();
  if (before_ != 0) {
    tried_.add(seconds);
    const bool hopeless = tried_.steps >= kFewSteps && tried_.seconds > kMuchSlower * usual_.seconds;
    if (tried_.steps >= kTrialSteps || hopeless) judge(now);
    return;
  }
  usual_.add(seconds);
  if (usual_.steps < kTrialSteps || now < next_trial_) return;
  if (held_up && active_ > 1) {
    start_trial(std::max(1, active_ - fewer_));
  } else if (active_ < workers_) {
    start_trial(active_ + 1);
  }
}

// Stays with the faster number.  A trial that changed nothing is put off for longer, one that did lets the next come
// soon.
void Crew::judge(Time now) noexcept {
  const bool better = tried_.seconds < usual_.seconds;
  patience_ = better ? kLeastPatience : std::clamp(2 * patience_, kLeastPatience, kMostPatience);
  next_trial_ = now + patience_;
  if (better) {
    usual_ = tried_;
    fewer_ = 1;
  } else {
    if (active_ < before_) fewer_ = active_ > 1 ? 2 * fewer_ : 1;
    active_ = before_;
  }
  before_ = 0;
}

}  // namespace cpuinfer
