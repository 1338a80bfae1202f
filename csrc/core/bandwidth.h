// How fast memory is read on this machine, measured: the roof under which decoding runs.
#pragma once

#include <cstdint>

namespace cpuinfer {

// Bytes per second at which `threads` threads together read `bytes` bytes again and again, each a contiguous share: the
// median of the passes that fit into `seconds`, three at least, so that no lucky or disturbed one decides.  A set that
// fits a cache measures that cache.
//
// Throws Error(kInvalid) for fewer than 4096 bytes a thread, threads outside 1 to kMostWorkers or seconds outside (0,
// 60]; Error(kMemory) when the set cannot be allocated.
double read_bandwidth(int64_t bytes, int threads, double seconds);

}  // namespace cpuinfer
