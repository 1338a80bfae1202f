// The layouts of GGUF's block encodings, and their rows in and out of panels.
#include "kernels/blocks.h"

#include <cmath>
#include <cstring>

#include "kernels/codebooks.h"
#include "kernels/transpose.h"
#include "kernels/vec_scalar.h"

namespace cpuinfer {

#include "kernels/unpack.inl.h"
// After what it uses.
#include "kernels/grids.inl.h"

namespace {

// Blocks as in ggml-common.h.
constexpr BlockField kQ5_0Fields[] = {{2, 2, 0, 2}, {20, 4, 2, 4}};
constexpr BlockField kQ5_1Fields[] = {{4, 2, 0, 2}, {20, 4, 4, 4}};
constexpr BlockField kQ2KFields[] = {{16, 1, 4, 1}, {64, 4, 20, 4}, {4, 2, 0, 2}};
constexpr BlockField kQ3KFields[] = {{32, 4, 14, 8}, {32, 4, 18, 8}, {32, 4, 78, 4}, {12, 1, 2, 1}, {2, 2, 0, 2}};
constexpr BlockField kQ4KFields[] = {{4, 2, 0, 2}, {12, 1, 4, 1}, {128, 4, 16, 4}};
constexpr BlockField kQ5KFields[] = {{4, 2, 0, 2}, {12, 1, 4, 1}, {32, 4, 16, 8}, {32, 4, 20, 8}, {96, 4, 80, 4}};
constexpr BlockField kQ6KFields[] = {{32, 4, 18, 12}, {32, 4, 22, 12}, {32, 4, 114, 12}, {32, 4, 118, 12},
                                     {64, 4, 26, 12}, {16, 1, 2, 1},   {2, 2, 0, 2}};
constexpr BlockField kIq4NlFields[] = {{2, 2, 0, 2}, {16, 4, 2, 4}};
constexpr BlockField kIq4XsFields[] = {{2, 2, 0, 2}, {6, 1, 2, 1}, {128, 4, 8, 4}};
constexpr BlockField kMxfp4Fields[] = {{1, 1, 0, 1}, {16, 4, 1, 4}};
constexpr BlockField kTq1_0Fields[] = {{52, 4, 2, 4}, {2, 2, 0, 2}};
constexpr BlockField kTq2_0Fields[] = {{64, 4, 2, 4}, {2, 2, 0, 2}};
// With code-books a row is unpacked alone: its bytes stay together.
constexpr BlockField kIq2XxsFields[] = {{66, 66, 0, 66}};
constexpr BlockField kIq2XsFields[] = {{74, 74, 0, 74}};
constexpr BlockField kIq2SFields[] = {{82, 82, 0, 82}};
constexpr BlockField kIq3XxsFields[] = {{98, 98, 0, 98}};
constexpr BlockField kIq3SFields[] = {{110, 110, 0, 110}};
constexpr BlockField kIq1SFields[] = {{50, 50, 0, 50}};
constexpr BlockField kIq1MFields[] = {{56, 56, 0, 56}};

constexpr BlockLayout kLayouts[] = {
#define CPUINFER_LAYOUT(encoding, Unpacked, name) \
  {Encoding::encoding, name, Unpacked::kInputs, Unpacked::kBytes, encoding##Fields},
    CPUINFER_BLOCK_ENCODINGS(CPUINFER_LAYOUT)
#undef CPUINFER_LAYOUT
};

// A field of rows [row, count), `stride` bytes apart, into lanes of a panel, the first of them at `to`.
template <int kUnit>
void copy_field(const BlockField& field, const uint8_t* in, int64_t stride, int64_t row, int64_t count, uint8_t* to) {
  for (; row < count; ++row) {
    const uint8_t* unit = in + row * stride;
    uint8_t* out = to + row * kUnit;
    for (const uint8_t* end = unit + field.bytes; unit < end; unit += kUnit, out += field.stride * kLanes) {
      std::memcpy(out, unit, kUnit);
    }
  }
}

void copy_words(const BlockField& field, const uint8_t* in, int64_t stride, int64_t count, uint8_t* to) {
  int64_t row = 0;
  for (; field.bytes % 16 == 0 && row + 4 <= count; row += 4) {
    for (int64_t at = 0; at < field.bytes; at += 16) {
      FourWords columns[4];
      transpose_words(in + row * stride + at, stride, columns);
      for (int64_t c = 0; c < 4; ++c) {
        std::memcpy(to + row * 4 + (at / 4 + c) * field.stride * kLanes, &columns[c], sizeof columns[c]);
      }
    }
  }
  copy_field<4>(field, in, stride, row, count, to);
}

template <typename E>
void read_row(const uint8_t* panel, int64_t blocks, int64_t lane, float* out) {
  Stage stage;
  for (int64_t b = 0; b < blocks; ++b) {
    unpack<E>(panel + b * E::kBytes * kLanes, stage, 0);
    for (int i = 0; i < E::kInputs; ++i) {
      const int code = stage.codes[i / 4][lane * 4 + i % 4] - E::kZero;
      const float scale = stage.scale[i / E::kScaled][lane];
      const float bias = E::kBias ? stage.bias[i / E::kScaled][lane] : 0.0f;
      *out++ = std::fma(scale, static_cast<float>(code), bias);
    }
  }
}

}  // namespace

const BlockLayout* block_layout(Encoding encoding) noexcept {
  for (const BlockLayout& layout : kLayouts) {
    if (layout.encoding == encoding) return &layout;
  }
  return nullptr;
}

void pack_blocks(const BlockLayout& layout, const uint8_t* rows, int64_t count, int64_t blocks, int64_t lane,
                 uint8_t* panel) noexcept {
  const int64_t row_bytes = blocks * layout.bytes;
  for (int64_t b = 0; b < blocks; ++b, rows += layout.bytes, panel += layout.bytes * kLanes) {
    const uint8_t* in = rows;
    for (const BlockField& field : layout.fields) {
      uint8_t* to = panel + field.at * kLanes + lane * field.unit;
      switch (field.unit) {
        case 1: copy_field<1>(field, in, row_bytes, 0, count, to); break;
        case 2: copy_field<2>(field, in, row_bytes, 0, count, to); break;
        case 4: copy_words(field, in, row_bytes, count, to); break;
        default:  // a whole block
          for (int64_t row = 0; row < count; ++row) {
            std::memcpy(to + row * field.unit, in + row * row_bytes, static_cast<std::size_t>(field.unit));
          }
      }
      in += field.bytes;
    }
  }
}

void read_blocks(const BlockLayout& layout, const uint8_t* panel, int64_t blocks, int64_t lane, float* out) noexcept {
  switch (layout.encoding) {
#define CPUINFER_READ(encoding, Unpacked, name) \
  case Encoding::encoding: return read_row<Unpacked>(panel, blocks, lane, out);
    CPUINFER_BLOCK_ENCODINGS(CPUINFER_READ)
#undef CPUINFER_READ
    default: return;
  }
}

}  // namespace cpuinfer
