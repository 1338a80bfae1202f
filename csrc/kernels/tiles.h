// The tile instructions, as functions that say what they do to memory.
//
// The intrinsics of GCC 12 do not: a load is declared to read nothing, and of a configuration only 8 bytes are, so that
// the stores before them may be dropped.
#pragma once

#include <cstdint>

namespace cpuinfer {
namespace {

// All eight tiles: 16 rows of 64 bytes.  Palette 1, Intel SDM volume 1, chapter 18.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

inline void configure_tiles() {
  const TileConfig config;
  asm volatile("ldtilecfg %0" : : "m"(config));
}

inline void release_tiles() { asm volatile("tilerelease"); }

template <int tile>
inline void clear_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(tile));
}

// Sixteen rows, `stride` bytes apart.
template <int tile>
inline void load_tile(const void* rows, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(rows), "r"(stride), "i"(tile) : "memory");
}

// The same for what is read once and should not displace what lies in the first cache.
template <int tile>
inline void stream_tile(const void* rows, int64_t stride) {
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" : : "r"(rows), "r"(stride), "i"(tile) : "memory");
}

template <int tile>
inline void store_tile(void* rows, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(rows), "r"(stride), "i"(tile) : "memory");
}

// sums fp32 [16][16] += a bf16 [16][32] times b bf16 [16 pairs of k][16][2].
template <int sums, int a, int b>
inline void multiply_tile() {
  asm volatile("tdpbf16ps %%tmm%c0, %%tmm%c1, %%tmm%c2" : : "i"(b), "i"(a), "i"(sums));
}

}  // namespace
}  // namespace cpuinfer
