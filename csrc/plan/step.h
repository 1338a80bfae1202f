// One step's rows: which tokens, at which positions, of which sequences.  The plan itself never changes.
#pragma once

#include <cstdint>

namespace cpuinfer {

// A run of neighbouring rows of one sequence at ascending positions.
struct Run {
  int64_t row;  // first row
  int64_t rows;
  int64_t position;       // of the first row
  uint8_t* const* pages;  // the sequence's cache pages; enough for its last position
};

struct Step {
  int64_t rows = 0;
  int64_t tiled = 0;                   // of them the first, for tile units: runs of whole pages
  const int32_t* tokens = nullptr;     // [rows]
  const int64_t* positions = nullptr;  // [rows]
  const Run* runs = nullptr;           // cover all rows, in order
  int64_t run_count = 0;
  // Asked now and then by worker 0 between ops: true abandons the step.  May be null.
  bool (*cancelled)(void* context) noexcept = nullptr;
  void* cancel_context = nullptr;
};

}  // namespace cpuinfer
