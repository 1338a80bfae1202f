// Division and rounding upwards of sizes, which are never negative.
#pragma once

#include <cstdint>

namespace cpuinfer {

constexpr int64_t ceil_div(int64_t n, int64_t divisor) { return (n + divisor - 1) / divisor; }

constexpr int64_t round_up(int64_t n, int64_t multiple) { return ceil_div(n, multiple) * multiple; }

}  // namespace cpuinfer
