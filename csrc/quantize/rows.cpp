// Goes through rows and groups.
#include "quantize/rows.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/error.h"
#include "quantize/affine_search.h"
#include "quantize/block_search.h"
#include "quantize/placing.h"
#include "quantize/plain_blocks.h"
#include "quantize/scale_search.h"

namespace cpuinfer {

namespace {

[[noreturn]] void wrong_row(int64_t row, const char* text) {
  throw Error(Fault::kNumerical, "row " + std::to_string(row) + ": holds " + text);
}

// A row at a time as fp32, and what its errors count.
class RowReader {
 public:
  RowReader(const Source& source, Importance importance)
      : source_(source), importance_(importance), x_(static_cast<std::size_t>(source.k)), weight_(x_.size(), 1.0f) {}

  const float* read(int64_t row) {
    const auto* from = static_cast<const uint8_t*>(source_.data) + row * source_.k * bytes_of(source_.kind);
    if (!read_source(source_.kind, from, source_.k, x_.data())) wrong_row(row, "NaN or infinity");
    return x_.data();
  }

  // Brought to a mean of 1 for each `together` neighbours, none quite 0: codes should be near what does not count, too.
  const float* weights(int64_t row, int64_t together) {
    constexpr float kLeast = 1e-6f;
    if (importance_.data == nullptr) return weight_.data();
    const float* from = importance_.data + (importance_.by_row ? row * source_.k : 0);
    for (int64_t begin = 0; begin < source_.k; begin += together) {
      double sum = 0;
      for (int64_t i = begin; i < begin + together; ++i) sum += static_cast<double>(from[i]);
      const double inverse = sum > 0 ? static_cast<double>(together) / sum : 0;
      for (int64_t i = begin; i < begin + together; ++i) {
        weight_[static_cast<std::size_t>(i)] = static_cast<float>(static_cast<double>(from[i]) * inverse) + kLeast;
      }
    }
    return weight_.data();
  }

 private:
  const Source& source_;
  Importance importance_;
  std::vector<float> x_;
  std::vector<float> weight_;
};

bool are_integers(std::span<const float> levels) {
  for (std::size_t i = 0; i < levels.size(); ++i) {
    if (levels[i] != levels[0] + static_cast<float>(i)) return false;
  }
  return levels[0] == std::floor(levels[0]);
}

template <typename F>
void with_given(std::span<const float> levels, const F& f) {
  if (are_integers(levels)) {
    f(IntegerLevels(levels.front(), levels.back()));
  } else {
    f(TableLevels(levels));
  }
}

}  // namespace

void quantize_blocks(const BlockType& type, const Source& source, Importance importance, bool search, uint8_t* out) {
  RowReader reader(source, importance);
  const int64_t blocks = source.k / type.elements;
  uint8_t codes[kMostElements];
  for (int64_t row = 0; row < source.rows; ++row) {
    const float* x = reader.read(row);
    uint8_t* to = out + row * blocks * type.bytes;
    if (!write_plain(type, x, blocks, to)) wrong_row(row, "a number too large for fp16 scales");
    if (!search) continue;
    const float* weight = reader.weights(row, type.elements);
    for (int64_t b = 0; b < blocks; ++b, x += type.elements, weight += type.elements, to += type.bytes) {
      const BlockScales found = find_scales(type, x, weight, read_scales(type, to));
      place_block(type, found, x, codes);
      write_scales(type, found, to);
      write_codes(type, codes, to);
    }
  }
}

void search_scales(std::span<const float> levels, int64_t group, const Source& source, Importance importance,
                   const float* plain, float* out) {
  RowReader reader(source, importance);
  const int64_t groups = source.k / group;
  with_given(levels, [&](const auto& all) {
    for (int64_t row = 0; row < source.rows; ++row) {
      const float* x = reader.read(row);
      const float* weight = reader.weights(row, group);
      for (int64_t g = 0; g < groups; ++g) {
        const Group here{x + g * group, weight + g * group, static_cast<int>(group)};
        out[row * groups + g] = find_scale(all, here, plain[row * groups + g], storable).scale;
      }
    }
  });
}

void search_zeros(int last, int64_t group, const Source& source, Importance importance, float* scale, uint8_t* zero) {
  RowReader reader(source, importance);
  const int64_t groups = source.k / group;
  const IntegerLevels levels(0, static_cast<float>(last));
  const auto zero_of = [&](Line line) {
    return std::clamp(std::round(-line.offset * reciprocal(line.scale)), 0.0f, static_cast<float>(last));
  };
  const auto whole = [&](Line line) {
    const Line rounded{storable(line.scale), line.offset};
    return Line{rounded.scale, -rounded.scale * zero_of(rounded)};
  };
  for (int64_t row = 0; row < source.rows; ++row) {
    const float* x = reader.read(row);
    const float* weight = reader.weights(row, group);
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t at = row * groups + g;
      const Group here{x + g * group, weight + g * group, static_cast<int>(group)};
      const Line plain{scale[at], -scale[at] * static_cast<float>(zero[at])};
      const Line found = find_line(levels, here, plain, true, whole).line;
      scale[at] = found.scale;
      zero[at] = static_cast<uint8_t>(zero_of(found));
    }
  }
}

void nearest_codes(std::span<const float> levels, int64_t group, const Source& source, const float* scale,
                   const float* offset, uint8_t* out) {
  RowReader reader(source, {});
  const int64_t groups = source.k / group;
  with_given(levels, [&](const auto& all) {
    for (int64_t row = 0; row < source.rows; ++row) {
      const float* x = reader.read(row);
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t at = row * groups + g;
        place(all, x + g * group, group, scale[at], offset == nullptr ? 0 : offset[at],
              out + row * source.k + g * group);
      }
    }
  });
}

}  // namespace cpuinfer
