// The scales of a block with the least weighted squared error, among a finite number of candidates.
#pragma once

#include "quantize/block_types.h"

namespace cpuinfer {

// x, weight [elements], weight of the square of each error, never negative.  `plain`: what is to be bettered.
BlockScales find_scales(const BlockType& type, const float* x, const float* weight, const BlockScales& plain);

}  // namespace cpuinfer
