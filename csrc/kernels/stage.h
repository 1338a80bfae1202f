// What a block of a panel is unpacked to before its dot products: one byte a code, one fp32 scale a group.
#pragma once

#include <type_traits>

#include "kernels/kernels.h"

namespace cpuinfer {

constexpr int kStageInputs = 256;  // the longest block of any encoding
constexpr int kLine = kLanes * 4;  // bytes: 16 rows of four codes

// value = scale * (code - zero) + bias; scale g is that of inputs [g * 32, ...) or [g * 16, ...), as the encoding says.
struct Stage {
  alignas(64) uint8_t codes[kStageInputs / 4][kLine];  // [k / 4][16 rows][4]
  alignas(64) float scale[kStageInputs / kHalf][kLanes];
  alignas(64) float bias[kStageInputs / kHalf][kLanes];  // where the encoding has one
};

}  // namespace cpuinfer
