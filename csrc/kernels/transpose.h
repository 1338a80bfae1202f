// Words of neighbouring rows into columns, four by four: most of what packing does.
#pragma once

#include <cstdint>
#include <cstring>

namespace cpuinfer {

using FourWords = uint32_t __attribute__((vector_size(16)));

// Row r's words w, at in + r * stride + 4 * w, become out[w][r]; r and w from 0 to 3.
inline void transpose_words(const uint8_t* in, int64_t stride, FourWords (&out)[4]) noexcept {
  FourWords row[4];
  for (int r = 0; r < 4; ++r) std::memcpy(&row[r], in + r * stride, sizeof row[r]);
  const FourWords low02 = __builtin_shufflevector(row[0], row[2], 0, 4, 1, 5);
  const FourWords low13 = __builtin_shufflevector(row[1], row[3], 0, 4, 1, 5);
  const FourWords high02 = __builtin_shufflevector(row[0], row[2], 2, 6, 3, 7);
  const FourWords high13 = __builtin_shufflevector(row[1], row[3], 2, 6, 3, 7);
  out[0] = __builtin_shufflevector(low02, low13, 0, 4, 1, 5);
  out[1] = __builtin_shufflevector(low02, low13, 2, 6, 3, 7);
  out[2] = __builtin_shufflevector(high02, high13, 0, 4, 1, 5);
  out[3] = __builtin_shufflevector(high02, high13, 2, 6, 3, 7);
}

}  // namespace cpuinfer
