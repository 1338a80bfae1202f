// The code-books of GGUF's IQ encodings: an entry is eight or four neighbours' numbers, a byte each in memory order.
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

}  // namespace cpuinfer
