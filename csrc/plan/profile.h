// Where the time of steps goes, op by op: kept by worker 0 when a plan is asked to.
//
// The clock is read once an op, after all workers are through with it.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <vector>

#include "plan/cache_shape.h"
#include "plan/program.h"
#include "plan/step.h"

namespace cpuinfer {

class Profile {
 public:
  enum Stage : uint8_t { kPrompt, kDecoding, kStages };  // decoding: one row of each sequence

  struct Time {
    int64_t steps = 0;
    int64_t rows = 0;
    double seconds = 0;
    double bytes = 0;       // of weights, and of keys and values, that had to be read
    double operations = 0;  // multiplications and additions
  };

  Profile(const Program& program, CacheShape cache);

  void begin(const Step& step) noexcept;
  // The op's work on so many rows is done; the number of ops stands for what follows the head.
  void end(std::size_t op, int64_t rows) noexcept;

  const Time& time(std::size_t op, Stage stage) const noexcept { return times_[op][stage]; }

 private:
  void count(const Op& op, int64_t rows, Time& time) const noexcept;
  void count_attention(const AttentionShape& shape, Time& time) const noexcept;

  const Program& program_;
  CacheShape cache_;
  std::vector<std::array<Time, kStages>> times_;
  Step step_;
  Stage stage_ = kPrompt;
  std::chrono::steady_clock::time_point last_;
};

}  // namespace cpuinfer
