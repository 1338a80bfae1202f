// Fills and reads the panels of a packed matrix; the layout is described in kernels.h.
#include "kernels/pack.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

#include "core/error.h"
#include "kernels/half.h"

namespace cpuinfer {

namespace {

constexpr int64_t kLargest = int64_t{1} << 30;  // of n and k: products of sizes stay far from overflow
constexpr int64_t kBlock = kLanes * 4;          // bytes: 16 rows of four codes
constexpr int64_t kHalfGroup = kGroup / 2;      // a nibble's partner is this much further along k

// Bytes of one row's share of a panel.
int64_t row_bytes(Encoding encoding, int64_t k) {
  switch (encoding) {
    case Encoding::kInt4: return k / 2;
    case Encoding::kInt8: return k;
    case Encoding::kF16:
    case Encoding::kBF16: return k * 2;
    case Encoding::kF32: break;
  }
  return k * 4;
}

void check_shape(Encoding encoding, int64_t n, int64_t k, int32_t zero) {
  const auto fail = [](const std::string& message) { throw Error(Fault::kUnsupportedFormat, message); };
  const std::string shape = "a matrix of shape (" + std::to_string(n) + ", " + std::to_string(k) + ")";
  if (n < 1 || k < 1 || n > kLargest || k > kLargest) {
    fail(shape + ": expected sizes from 1 to " + std::to_string(kLargest));
  }
  if (!is_integer(encoding)) return;
  if (k % kGroup != 0) fail(shape + ": integer codes need inputs in groups of " + std::to_string(kGroup));
  const int32_t last = encoding == Encoding::kInt4 ? 15 : 255;
  if (zero < 0 || zero > last) {
    fail("zero point " + std::to_string(zero) + ": expected a code, 0 to " + std::to_string(last));
  }
}

uint32_t four_codes(const uint8_t* p) {
  uint32_t word;
  std::memcpy(&word, p, sizeof word);
  return word;
}

// One row's group of 32 codes into its lane of the panel.  Returns the bits that no 4-bit code has.
uint32_t pack_nibbles(const uint8_t* codes, uint8_t* panel_lane) {
  uint32_t excess = 0;
  for (int s = 0; s < 4; ++s) {
    const uint32_t low = four_codes(codes + 4 * s), high = four_codes(codes + kHalfGroup + 4 * s);
    const uint32_t word = low | high << 4;
    std::memcpy(panel_lane + s * kBlock, &word, sizeof word);
    excess |= low | high;
  }
  return excess & 0xf0f0f0f0u;
}

void pack_bytes(const uint8_t* codes, uint8_t* panel_lane) {
  for (int s = 0; s < 8; ++s) std::memcpy(panel_lane + s * kBlock, codes + 4 * s, 4);
}

// Calls body(panel, first lane, end lane, first row relative to `row`) for each panel that [row, row + rows) touches.
template <typename Body>
void for_panels(int64_t row, int64_t rows, Body body) {
  for (int64_t at = row; at < row + rows;) {
    const int64_t panel = at / kLanes;
    const int64_t end = std::min(row + rows, (panel + 1) * kLanes);
    body(panel, at - panel * kLanes, end - panel * kLanes, at - row);
    at = end;
  }
}

// values [lanes][columns] -> lanes [lane, end) of out [columns][16].
template <typename T>
void interleave(const T* values, int64_t columns, int64_t lane, int64_t end, T* out) {
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t l = lane; l < end; ++l) out[c * kLanes + l] = values[(l - lane) * columns + c];
  }
}

}  // namespace

bool is_integer(Encoding encoding) noexcept { return encoding == Encoding::kInt4 || encoding == Encoding::kInt8; }

const char* encoding_name(Encoding encoding) noexcept {
  switch (encoding) {
    case Encoding::kInt4: return "int4";
    case Encoding::kInt8: return "int8";
    case Encoding::kF16: return "f16";
    case Encoding::kBF16: return "bf16";
    case Encoding::kF32: return "f32";
  }
  return "unknown";
}

PackedMatrix::PackedMatrix(Encoding encoding, int64_t n, int64_t k, int32_t zero, bool has_bias, BufferPool* pool) {
  check_shape(encoding, n, k, zero);
  const auto take = [&](std::size_t bytes) { return pool != nullptr ? pool->take(bytes) : Buffer(bytes); };
  const int64_t padded = round_up(n, kLanes);
  codes_ = take(static_cast<std::size_t>(padded * row_bytes(encoding, k)));
  if (is_integer(encoding)) {
    const auto scale_bytes = static_cast<std::size_t>(padded * (k / kGroup)) * sizeof(uint16_t);
    scale_ = take(scale_bytes);
    if (has_bias) bias_ = take(scale_bytes);
  }
  view_ = {encoding, zero, n, k, codes_.as<void>(), scale_.as<uint16_t>(), bias_.as<uint16_t>()};
}

void PackedMatrix::set_integer_rows(int64_t row, int64_t rows, const uint8_t* codes, const uint16_t* scale,
                                    const uint16_t* bias) {
  const int64_t k = view_.k, groups = k / kGroup;
  const bool nibbles = view_.encoding == Encoding::kInt4;
  const int64_t group_bytes = kLanes * (nibbles ? kGroup / 2 : kGroup);
  uint32_t excess = 0;
  for_panels(row, rows, [&](int64_t panel, int64_t lane, int64_t end, int64_t source) {
    uint8_t* out = codes_.as<uint8_t>() + panel * groups * group_bytes;
    for (int64_t g = 0; g < groups; ++g, out += group_bytes) {
      for (int64_t l = lane; l < end; ++l) {
        const uint8_t* in = codes + (source + l - lane) * k + g * kGroup;
        if (nibbles) {
          excess |= pack_nibbles(in, out + 4 * l);
        } else {
          pack_bytes(in, out + 4 * l);
        }
      }
    }
    const int64_t at = panel * groups * kLanes;
    interleave(scale + source * groups, groups, lane, end, scale_.as<uint16_t>() + at);
    if (bias) interleave(bias + source * groups, groups, lane, end, bias_.as<uint16_t>() + at);
  });
  if (excess) {
    throw Error(Fault::kUnsupportedFormat,
                "rows " + std::to_string(row) + " to " + std::to_string(row + rows - 1) + ": a 4-bit code above 15");
  }
}

void PackedMatrix::set_float_rows(int64_t row, int64_t rows, const void* values) {
  const int64_t k = view_.k;
  for_panels(row, rows, [&](int64_t panel, int64_t lane, int64_t end, int64_t source) {
    if (view_.encoding == Encoding::kF32) {
      interleave(static_cast<const uint32_t*>(values) + source * k, k, lane, end,
                 codes_.as<uint32_t>() + panel * k * kLanes);
    } else {
      interleave(static_cast<const uint16_t*>(values) + source * k, k, lane, end,
                 codes_.as<uint16_t>() + panel * k * kLanes);
    }
  });
}

void PackedMatrix::read_row(int64_t row, float* out) const noexcept {
  const int64_t k = view_.k, groups = k / kGroup, panel = row / kLanes, lane = row % kLanes;
  const auto element = [&](int64_t i) { return (panel * k + i) * kLanes + lane; };  // of a float encoding
  const auto code = [&](int64_t i) -> int32_t {
    const int64_t group = panel * groups + i / kGroup, in = i % kGroup;
    const uint8_t* bytes = codes_.as<uint8_t>();
    if (view_.encoding == Encoding::kInt8) {
      return bytes[group * kLanes * kGroup + in / 4 * kBlock + lane * 4 + in % 4];
    }
    const int64_t low = in % kHalfGroup;
    const uint8_t pair = bytes[group * kLanes * kHalfGroup + low / 4 * kBlock + lane * 4 + low % 4];
    return in < kHalfGroup ? pair & 15 : pair >> 4;
  };
  for (int64_t i = 0; i < k; ++i) {
    switch (view_.encoding) {
      case Encoding::kInt4:
      case Encoding::kInt8: {
        const int64_t at = (panel * groups + i / kGroup) * kLanes + lane;
        const float bias = view_.bias ? half_to_float(view_.bias[at]) : 0.0f;
        out[i] = std::fma(half_to_float(view_.scale[at]), static_cast<float>(code(i) - view_.zero), bias);
        break;
      }
      case Encoding::kF16: out[i] = half_to_float(codes_.as<uint16_t>()[element(i)]); break;
      case Encoding::kBF16:
        out[i] = std::bit_cast<float>(static_cast<uint32_t>(codes_.as<uint16_t>()[element(i)]) << 16);
        break;
      case Encoding::kF32: out[i] = codes_.as<float>()[element(i)]; break;
    }
  }
}

int64_t PackedMatrix::bytes() const noexcept {
  return static_cast<int64_t>(codes_.bytes() + scale_.bytes() + bias_.bytes());
}

}  // namespace cpuinfer
