// The code-books of GGUF's IQ and MXFP4 encodings: an entry is eight or four neighbours' numbers, a byte each in memory
// order, or one number.
#pragma once

#include <array>
#include <cstdint>

namespace cpuinfer {

// Magnitudes; signs are stored apart.
extern const std::array<uint64_t, 256> kIq2XxsGrid;
extern const std::array<uint64_t, 512> kIq2XsGrid;
extern const std::array<uint64_t, 1024> kIq2SGrid;
extern const std::array<uint32_t, 256> kIq3XxsGrid;
extern const std::array<uint32_t, 512> kIq3SGrid;
extern const std::array<uint64_t, 2048> kIq1SGrid;  // -1, 0 or 1, as signed bytes; IQ1_M has the same

// Constants of each file, not of the library: kernels shift them when compiled.
constexpr int8_t kIq4NlNumbers[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int8_t kE2m1Doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

}  // namespace cpuinfer
