// Codes into their bits of a block; inlined, so that for a type known when compiled nothing is left to decide.
#pragma once

#include <cstdint>
#include <cstring>

#include "quantize/block_types.h"

namespace cpuinfer {

__attribute__((always_inline)) inline void put_bits(CodeBits part, int elements, const uint8_t* codes, uint8_t flipped,
                                                    uint8_t* block) {
  if (part.bits == 1 && part.run == 1) {
    for (int i = 0; i < elements / 8; ++i) {
      // Of eight bytes a bit each: byte j, times 2^(56 - 7j), comes to bit 56 + j, and nothing else does.
      uint64_t eight;
      std::memcpy(&eight, codes + i * 8, sizeof eight);
      const uint64_t bits = eight >> part.shift & 0x0101010101010101u;
      block[part.at + i] = static_cast<uint8_t>((bits * 0x0102040810204080u >> 56) ^ flipped);
    }
    return;
  }
  const int each = 8 / part.bits, runs = elements / (each * part.run);
  const unsigned mask = (1u << part.bits) - 1;
  for (int r = 0; r < runs; ++r) {
    const uint8_t* from = codes + r * each * part.run;
    uint8_t* to = block + part.at + r * part.run;
    for (int i = 0; i < part.run; ++i) {
      unsigned packed = 0;
      for (int place = 0; place < each; ++place) {
        packed |= (static_cast<unsigned>(from[place * part.run + i]) >> part.shift & mask) << (place * part.bits);
      }
      to[i] = static_cast<uint8_t>(packed ^ flipped);
    }
  }
}

__attribute__((always_inline)) inline void put_codes(const BlockType& type, const uint8_t* codes, uint8_t* block) {
  put_bits(type.low, type.elements, codes, static_cast<uint8_t>(type.flipped), block);
  if (type.high.run > 0) put_bits(type.high, type.elements, codes, 0, block);
}

}  // namespace cpuinfer
