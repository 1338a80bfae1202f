// Matrices of weights to scales, codes and blocks; the caller cuts them into runs of rows for its threads.
#pragma once

#include <cstdint>
#include <span>

#include "quantize/block_types.h"
#include "quantize/source_rows.h"

namespace cpuinfer {

// Rows one after another.
struct Source {
  SourceKind kind;
  const void* data;
  int64_t rows, k;
};

// The weights of squared errors: of each weight, of each column, or (null) all alike.  Finite, none negative.
struct Importance {
  const float* data = nullptr;
  bool by_row = false;
};

// Rows of blocks [rows][k / elements * bytes], by a search or plainly; k is a multiple of elements.  Throws
// Error(kNumerical), naming the row, for NaN and infinity and for what is too large for fp16 scales.
void quantize_blocks(const BlockType& type, const Source& source, Importance importance, bool search, uint8_t* out);

// Of each group the scale of ``find_scale`` with fp16 scales: plain, out [rows][k / group].  `levels` ascend.
void search_scales(std::span<const float> levels, int64_t group, const Source& source, Importance importance,
                   const float* plain, float* out);

// Of each group the scale of ``find_line``, with fp16 scales and zero points 0 .. last: offset -scale zero.
void search_zeros(int last, int64_t group, const Source& source, Importance importance, float* scale, uint8_t* zero);

// The codes of the nearest levels, [rows][k]; scale, offset (null: 0) [rows][k / group].
void nearest_codes(std::span<const float> levels, int64_t group, const Source& source, const float* scale,
                   const float* offset, uint8_t* out);

}  // namespace cpuinfer
