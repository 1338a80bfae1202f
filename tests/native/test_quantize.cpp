// The quantisers on what no model has: every number a scale can be stored as, and weights at the ends of fp32.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "core/error.h"
#include "guarded.h"
#include "kernels/half.h"
#include "quantize/rows.h"

namespace cpuinfer {
namespace {

std::string message(const BlockType& type, const std::vector<float>& w, bool search) {
  std::vector<uint8_t> out(w.size() / static_cast<std::size_t>(type.elements) * static_cast<std::size_t>(type.bytes));
  try {
    quantize_blocks(type, {SourceKind::kF32, w.data(), 1, static_cast<int64_t>(w.size())}, {}, search, out.data());
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST("every number of every scale is read back from where it was written") {
  std::mt19937 random(1);
  for (const BlockType& type : kBlockTypes) {
    for (int round = 0; round < 300; ++round) {
      BlockScales s;
      s.scale.factor = half_to_float(static_cast<uint16_t>(random() % 0x7c00));
      if (type.has_offset()) s.offset.factor = half_to_float(static_cast<uint16_t>(random() % 0x7c00));
      for (int g = 0; g < type.groups(); ++g) {
        const auto any = [&](NumberRange r) {
          return r.low + static_cast<int>(random() % unsigned(r.high - r.low + 1));
        };
        s.scale.number[g] = any(type.scales);
        if (type.has_offset()) s.offset.number[g] = any(type.offsets);
      }
      std::vector<uint8_t> block(static_cast<std::size_t>(type.bytes), 0xff), codes(256, 0);
      write_scales(type, s, block.data());
      write_codes(type, codes.data(), block.data());
      const BlockScales back = read_scales(type, block.data());
      for (int g = 0; g < type.groups(); ++g) {
        CHECK_EQ(back.scale_of(g), s.scale_of(g));
        CHECK_EQ(back.offset_of(g), s.offset_of(g));
      }
    }
  }
}

TEST("numbers at the ends of fp32 are stored or refused") {
  constexpr float kMost = std::numeric_limits<float>::max(), kLeast = std::numeric_limits<float>::denorm_min();
  for (const BlockType& type : kBlockTypes) {
    for (const bool search : {false, true}) {
      for (const float x : {kMost, -kMost, kLeast, 1e-38f, 1e-20f, 6e-8f, 65504.0f}) {
        std::vector<float> w(static_cast<std::size_t>(2 * type.elements), 0.0f);
        w[1] = x;
        w[2] = -x;
        w[w.size() - 1] = x / 3;
        const std::string text = message(type, w, search);
        CHECK(text.empty() || text.find("row 0: holds a number too large") == 0);
        CHECK_EQ(text.empty(), std::abs(x) <= 65504);
      }
      std::vector<float> w(static_cast<std::size_t>(type.elements), 1.0f);
      w.back() = std::numeric_limits<float>::quiet_NaN();
      CHECK_EQ(message(type, w, search), "row 0: holds NaN or infinity");
    }
  }
}

TEST("reads and writes stay within rows") {
  for (const BlockType& type : kBlockTypes) {
    const int64_t k = 2 * type.elements, bytes = 2 * type.bytes;
    for (const SourceKind kind : {SourceKind::kF32, SourceKind::kF16, SourceKind::kBf16}) {
      Guarded<uint8_t> in(static_cast<std::size_t>(3 * k * bytes_of(kind)));
      Guarded<uint8_t> out(static_cast<std::size_t>(3 * bytes));
      Guarded<float> importance(static_cast<std::size_t>(k));
      std::fill_n(in.data(), 3 * k * bytes_of(kind), uint8_t{0x31});
      std::fill_n(importance.data(), k, 0.5f);
      for (const bool search : {false, true}) {
        quantize_blocks(type, {kind, in.data(), 3, k}, {importance.data(), false}, search, out.data());
      }
    }
  }
}

}  // namespace
}  // namespace cpuinfer

int main() { return check::run_all(); }
