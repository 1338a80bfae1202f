// How many of a team's workers take part in a step: one less for a while when that turns out to be faster.
//
// Beside other busy processes the system takes a worker off its processor for milliseconds, and whatever it was at
// holds up all the others; without it they are faster.  Whether that is so is found by trying, and only after a wait so
// long that undisturbed work has none.
#pragma once

#include <chrono>

namespace cpuinfer {

class Crew {
 public:
  using Time = std::chrono::steady_clock::time_point;
  using Duration = std::chrono::steady_clock::duration;

  explicit Crew(int workers) : workers_(workers), active_(workers) {}

  // Workers that should take part in the next step.
  int active() const noexcept { return active_; }

  // After a step of `rows` rows that took `duration` with them; `held_up`: one waited for another for long.
  void report(int rows, Duration duration, bool held_up, Time now) noexcept;

 private:
  struct Mean {  // of the last steps or so
    double seconds = 0;
    int steps = 0;
    void add(double value) noexcept;
  };

  void start_trial(int active) noexcept;
  void judge(Time now) noexcept;

  int workers_;
  int active_;
  int before_ = 0;  // how many took part before the trial that is on; 0: none is
  int rows_ = 0;    // of the steps that the means are of
  int fewer_ = 1;   // workers that the next trial does without: more each time that one changes nothing
  Mean usual_, tried_;
  Time next_trial_{};
  Duration patience_{};  // between trials: longer each time that one changes nothing
};

}  // namespace cpuinfer
