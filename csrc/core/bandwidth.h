// How fast this machine reads memory: the roof of decoding, which reads every weight once a token.
#pragma once

#include <cstdint>

namespace cpuinfer {

// Bytes per second at which `threads` threads together read a working set of `bytes`, each its own part over and over:
// the best of the passes that fit in about `seconds`.  Throws Error(kInvalid) for an argument out of range and
// Error(kMemory) when the working set cannot be allocated.
double read_bandwidth(int64_t bytes, int threads, double seconds);

}  // namespace cpuinfer
