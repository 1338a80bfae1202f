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

// Vectors of the compiler's own, which it makes of whatever registers the including file's flags allow.
using Line = uint8_t __attribute__((vector_size(kLine)));
using Words = uint32_t __attribute__((vector_size(kLine)));  // a row's four codes each
using Bytes = uint8_t __attribute__((vector_size(kLanes)));  // one a row

}  // namespace cpuinfer
