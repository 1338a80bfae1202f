// Where in a block its scales and codes lie; as python/cpuinfer/formats reads them.
#include <algorithm>
#include <cstring>
#include <string>

#include "core/error.h"
#include "kernels/half.h"
#include "quantize/block_types.h"
#include "quantize/code_bits.h"

namespace cpuinfer {

namespace {

void put_half(float value, uint8_t* to) {
  const uint16_t half = float_to_half(value);
  std::memcpy(to, &half, sizeof half);
}

float get_half(const uint8_t* from) {
  uint16_t half;
  std::memcpy(&half, from, sizeof half);
  return half_to_float(half);
}

uint8_t byte(int number) { return static_cast<uint8_t>(number); }

// Eight scales and eight minima of 6 bits in 12 bytes: ``scales_and_minima`` of formats/packed.py.
void put_six_bits(const BlockScales& s, uint8_t* to) {
  for (int g = 0; g < 4; ++g) {
    const int scale = s.scale.number[g], minimum = -s.offset.number[g];
    const int later = s.scale.number[g + 4], later_minimum = -s.offset.number[g + 4];
    to[g] = byte(scale | later >> 4 << 6);
    to[g + 4] = byte(minimum | later_minimum >> 4 << 6);
    to[g + 8] = byte((later & 15) | (later_minimum & 15) << 4);
  }
}

void get_six_bits(const uint8_t* from, BlockScales& s) {
  for (int g = 0; g < 4; ++g) {
    s.scale.number[g] = from[g] & 63;
    s.offset.number[g] = -(from[g + 4] & 63);
    s.scale.number[g + 4] = (from[g + 8] & 15) | from[g] >> 6 << 4;
    s.offset.number[g + 4] = -(from[g + 8] >> 4 | from[g + 4] >> 6 << 4);
  }
}

// Sixteen scales of 6 bits, 32 being zero: 8 bytes of low nibbles, 4 bytes of the high two bits.
void put_q3_k(const BlockScales& s, uint8_t* to) {
  std::fill_n(to, 12, uint8_t{0});
  for (int g = 0; g < 16; ++g) {
    const int raised = s.scale.number[g] + 32;
    to[g % 8] = byte(to[g % 8] | (raised & 15) << (g / 8 * 4));
    to[8 + g % 4] = byte(to[8 + g % 4] | (raised >> 4) << (g / 4 * 2));
  }
}

void get_q3_k(const uint8_t* from, BlockScales& s) {
  for (int g = 0; g < 16; ++g) {
    const int low = from[g % 8] >> (g / 8 * 4) & 15, high = from[8 + g % 4] >> (g / 4 * 2) & 3;
    s.scale.number[g] = (low | high << 4) - 32;
  }
}

// Eight scales of 6 bits, 32 being zero: 2 bytes of the high two bits, 4 bytes of low nibbles.
void put_iq4_xs(const BlockScales& s, uint8_t* to) {
  std::fill_n(to, 6, uint8_t{0});
  for (int g = 0; g < 8; ++g) {
    const int raised = s.scale.number[g] + 32;
    to[g / 4] = byte(to[g / 4] | (raised >> 4) << (g % 4 * 2));
    to[2 + g / 2] = byte(to[2 + g / 2] | (raised & 15) << (g % 2 * 4));
  }
}

void get_iq4_xs(const uint8_t* from, BlockScales& s) {
  for (int g = 0; g < 8; ++g) {
    const int low = from[2 + g / 2] >> (g % 2 * 4) & 15, high = from[g / 4] >> (g % 4 * 2) & 3;
    s.scale.number[g] = (low | high << 4) - 32;
  }
}

}  // namespace

const BlockType& find_block_type(std::string_view name) {
  const auto* type = std::ranges::find(kBlockTypes, name, &BlockType::name);
  if (type == std::end(kBlockTypes)) {
    throw Error(Fault::kInvalid, "type '" + std::string(name) + "': not one that is written");
  }
  return *type;
}

void write_scales(const BlockType& type, const BlockScales& s, uint8_t* block) {
  switch (type.layout) {
    case ScaleLayout::kOneAndOffset: put_half(s.offset.factor, block + 2); [[fallthrough]];
    case ScaleLayout::kOne: put_half(s.scale.factor, block); return;
    case ScaleLayout::kQ2K:
      for (int g = 0; g < 16; ++g) block[g] = byte(s.scale.number[g] | -s.offset.number[g] << 4);
      put_half(s.scale.factor, block + 80);
      put_half(s.offset.factor, block + 82);
      return;
    case ScaleLayout::kQ3K:
      put_q3_k(s, block + 96);
      put_half(s.scale.factor, block + 108);
      return;
    case ScaleLayout::kSixBits:
      put_half(s.scale.factor, block);
      put_half(s.offset.factor, block + 2);
      put_six_bits(s, block + 4);
      return;
    case ScaleLayout::kQ6K:
      for (int g = 0; g < 16; ++g) block[192 + g] = byte(s.scale.number[g]);
      put_half(s.scale.factor, block + 208);
      return;
    case ScaleLayout::kIq4Xs:
      put_half(s.scale.factor, block);
      put_iq4_xs(s, block + 2);
      return;
  }
}

BlockScales read_scales(const BlockType& type, const uint8_t* block) {
  BlockScales s;
  s.scale.number[0] = s.offset.number[0] = 1;
  switch (type.layout) {
    case ScaleLayout::kOneAndOffset: s.offset.factor = get_half(block + 2); [[fallthrough]];
    case ScaleLayout::kOne: s.scale.factor = get_half(block); break;
    case ScaleLayout::kQ2K:
      for (int g = 0; g < 16; ++g) {
        s.scale.number[g] = block[g] & 15;
        s.offset.number[g] = -(block[g] >> 4);
      }
      s.scale.factor = get_half(block + 80);
      s.offset.factor = get_half(block + 82);
      break;
    case ScaleLayout::kQ3K:
      get_q3_k(block + 96, s);
      s.scale.factor = get_half(block + 108);
      break;
    case ScaleLayout::kSixBits:
      s.scale.factor = get_half(block);
      s.offset.factor = get_half(block + 2);
      get_six_bits(block + 4, s);
      break;
    case ScaleLayout::kQ6K:
      for (int g = 0; g < 16; ++g) s.scale.number[g] = static_cast<int8_t>(block[192 + g]);
      s.scale.factor = get_half(block + 208);
      break;
    case ScaleLayout::kIq4Xs:
      s.scale.factor = get_half(block);
      get_iq4_xs(block + 2, s);
      break;
  }
  return s;
}

void write_codes(const BlockType& type, const uint8_t* codes, uint8_t* block) { put_codes(type, codes, block); }

}  // namespace cpuinfer
