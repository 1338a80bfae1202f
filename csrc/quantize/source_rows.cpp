// Conversion to fp32 in integers, without a branch, so that plain code does four at a time.
#include "quantize/source_rows.h"

#include <bit>
#include <cstring>

namespace cpuinfer {

namespace {

constexpr uint32_t kExponent = 0x7f800000u;

// fp32's bits of a finite fp16: its exponent raised by 127 - 15; zero and subnormals are 2^-14 too much by then.
inline float from_half(uint16_t half) {
  const uint32_t wide = half, magnitude = (wide & 0x7fffu) << 13, exponent = magnitude & 0x0f800000u;
  const uint32_t small = exponent == 0 ? 0xffffffffu : 0u;
  const float raised = std::bit_cast<float>(magnitude + (112u << 23) + (small & (1u << 23)));
  const float value = raised - std::bit_cast<float>(small & 0x38800000u);
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | (wide & 0x8000u) << 16);
}

}  // namespace

bool read_source(SourceKind kind, const void* from, int64_t count, float* to) noexcept {
  uint32_t wrong = 0;
  if (kind == SourceKind::kF16) {
    const auto* halves = static_cast<const uint16_t*>(from);
    for (int64_t i = 0; i < count; ++i) {
      wrong |= (halves[i] & 0x7c00u) == 0x7c00u;
      to[i] = from_half(halves[i]);
    }
    return wrong == 0;
  }
  if (kind == SourceKind::kBf16) {
    const auto* halves = static_cast<const uint16_t*>(from);
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t bits = static_cast<uint32_t>(halves[i]) << 16;
      wrong |= (bits & kExponent) == kExponent;
      to[i] = std::bit_cast<float>(bits);
    }
    return wrong == 0;
  }
  std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(float));
  for (int64_t i = 0; i < count; ++i) wrong |= (std::bit_cast<uint32_t>(to[i]) & kExponent) == kExponent;
  return wrong == 0;
}

}  // namespace cpuinfer
