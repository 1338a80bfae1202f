// Rounding to nearest as the formats' references do it: a block of fp32 to its bytes.
#pragma once

#include <cstdint>

#include "quantize/block_types.h"

namespace cpuinfer {

// x [blocks * elements] -> blocks.  Of Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 to the bit what the gguf package writes.
// False where a scale is too large for fp16.
bool write_plain(const BlockType& type, const float* x, int64_t blocks, uint8_t* to) noexcept;

}  // namespace cpuinfer
