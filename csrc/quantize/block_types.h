// GGUF's block types as a writer sees them: which levels, how scales are kept, where in a block the codes lie.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "quantize/two_levels.h"

namespace cpuinfer {

constexpr int kMostElements = 256;  // of a block

// The scales of a block: group g has scale factor * scale.number[g] and offset.factor * offset.number[g].
struct BlockScales {
  TwoLevels scale, offset;

  float scale_of(int group) const { return scale.factor * static_cast<float>(scale.number[group]); }
  float offset_of(int group) const { return offset.factor * static_cast<float>(offset.number[group]); }
};

// Some bits of every code: a run of bytes has the bits of as many neighbours lowest, then of the next, and so on.
struct CodeBits {
  int shift, bits;  // which of the code's
  int run;          // bytes; 0: there are none
  int at;           // where in the block the first run begins
};

enum class Levels : uint8_t { kIntegers, kIq4Nl };
// How a block keeps its scales; see block_bytes.cpp.
enum class ScaleLayout : uint8_t { kOne, kOneAndOffset, kQ2K, kQ3K, kSixBits, kQ6K, kIq4Xs };

struct BlockType {
  const char* name;
  int elements, bytes;  // of a block
  int group;            // neighbours that share a scale
  Levels levels;
  int first, last;  // integer levels
  ScaleLayout layout;
  NumberRange scales;   // low == high: one level
  NumberRange offsets;  // {0, 0}: none
  CodeBits low, high;
  int flipped;  // xor of every code's lowest bits as they are stored

  constexpr int groups() const { return elements / group; }
  constexpr bool has_offset() const { return offsets.low != offsets.high || offsets.low != 0; }
  constexpr bool has_two_levels() const { return scales.low != scales.high; }
};

// clang-format off
inline constexpr BlockType kBlockTypes[] = {
    // name   elements bytes group levels            first last layout                     scales       offsets  low codes        high codes
    {"Q4_0",    32,  18,  32, Levels::kIntegers,   -8,   7, ScaleLayout::kOne,          {1, 1},      {0, 0},  {0, 4, 16, 2},   {0, 0, 0, 0},    0},
    {"Q4_1",    32,  20,  32, Levels::kIntegers,    0,  15, ScaleLayout::kOneAndOffset, {1, 1},      {1, 1},  {0, 4, 16, 4},   {0, 0, 0, 0},    0},
    {"Q5_0",    32,  22,  32, Levels::kIntegers,  -16,  15, ScaleLayout::kOne,          {1, 1},      {0, 0},  {0, 4, 16, 6},   {4, 1, 1, 2},    0},
    {"Q5_1",    32,  24,  32, Levels::kIntegers,    0,  31, ScaleLayout::kOneAndOffset, {1, 1},      {1, 1},  {0, 4, 16, 8},   {4, 1, 1, 4},    0},
    {"Q8_0",    32,  34,  32, Levels::kIntegers, -128, 127, ScaleLayout::kOne,          {1, 1},      {0, 0},  {0, 8, 32, 2},   {0, 0, 0, 0}, 0x80},
    {"Q2_K",   256,  84,  16, Levels::kIntegers,    0,   3, ScaleLayout::kQ2K,          {0, 15},     {-15, 0}, {0, 2, 32, 16}, {0, 0, 0, 0},    0},
    {"Q3_K",   256, 110,  16, Levels::kIntegers,   -4,   3, ScaleLayout::kQ3K,          {-32, 31},   {0, 0},  {0, 2, 32, 32},  {2, 1, 32, 0},   0},
    {"Q4_K",   256, 144,  32, Levels::kIntegers,    0,  15, ScaleLayout::kSixBits,      {0, 63},     {-63, 0}, {0, 4, 32, 16}, {0, 0, 0, 0},    0},
    {"Q5_K",   256, 176,  32, Levels::kIntegers,    0,  31, ScaleLayout::kSixBits,      {0, 63},     {-63, 0}, {0, 4, 32, 48}, {4, 1, 32, 16},  0},
    {"Q6_K",   256, 210,  16, Levels::kIntegers,  -32,  31, ScaleLayout::kQ6K,          {-128, 127}, {0, 0},  {0, 4, 64, 0},   {4, 2, 32, 128}, 0},
    {"IQ4_NL",  32,  18,  32, Levels::kIq4Nl,    -127, 113, ScaleLayout::kOne,          {1, 1},      {0, 0},  {0, 4, 16, 2},   {0, 0, 0, 0},    0},
    {"IQ4_XS", 256, 136,  32, Levels::kIq4Nl,    -127, 113, ScaleLayout::kIq4Xs,        {-32, 31},   {0, 0},  {0, 4, 16, 8},   {0, 0, 0, 0},    0},
};
// clang-format on

// Throws Error(kInvalid) for a name that is not among them.
const BlockType& find_block_type(std::string_view name);

// Scales into a block and out of it; what is in two levels must have numbers in range, and factors that fp16 holds.
void write_scales(const BlockType& type, const BlockScales& scales, uint8_t* block);
BlockScales read_scales(const BlockType& type, const uint8_t* block);

// Codes [elements] into a block.
void write_codes(const BlockType& type, const uint8_t* codes, uint8_t* block);

}  // namespace cpuinfer
