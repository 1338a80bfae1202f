// How fast memory is read on this machine, measured: the roof under which decoding runs.
#pragma once

#include <cstdint>

namespace cpuinfer {

// Bytes per second at which `threads` threads together read `bytes` bytes again and again, each its own contiguous
// share: the median-free best of the passes that fit into `seconds` (at least three).  A set that fits a cache measures
// that cache.  Throws Error(kInvalid) for bytes < 4096 per thread, threads outside 1 to 1024 or seconds outside
// (0, 60]; Error(kMemory) when the working set cannot be allocated.
double read_bandwidth(int64_t bytes, int threads, double seconds);

}  // namespace cpuinfer
