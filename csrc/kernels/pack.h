// Packing: from the canonical form (codes, scales, biases, row-major) to the panels the kernels read.
#pragma once

#include <cstdint>

#include "core/buffer.h"
#include "core/rounding.h"
#include "kernels/kernels.h"

namespace cpuinfer {

bool is_integer(Encoding encoding) noexcept;
const char* encoding_name(Encoding encoding) noexcept;  // "int4", ...

// Owns one packed matrix.  Filled row range by row range, so the unpacked matrix never has to exist whole.  Several
// threads may fill it at once if their ranges are disjoint and start at multiples of kLanes.
class PackedMatrix {
 public:
  // Checks n, k >= 1, k % kGroup == 0 and that zero is a code, for integer encodings; throws Error(kUnsupportedFormat)
  // otherwise.  The memory is the matrix's own, or a part of the pool's.
  PackedMatrix(Encoding encoding, int64_t n, int64_t k, int32_t zero, bool has_bias, BufferPool* pool = nullptr);

  // Rows [row, row + rows): codes uint8 [rows][k] (kInt4: 0..15, else Error(kUnsupportedFormat)), scale and bias
  // fp16 [rows][k / 32] (bias null without).
  void set_integer_rows(int64_t row, int64_t rows, const uint8_t* codes, const uint16_t* scale, const uint16_t* bias);
  // Rows of a float encoding: values [rows][k], two or four bytes each as the encoding says.
  void set_float_rows(int64_t row, int64_t rows, const void* values);

  // Row -> fp32 [k]: value = fma(scale, code - zero, bias).  For embedding look-ups; baseline code.
  void read_row(int64_t row, float* out) const noexcept;

  const Weights& view() const noexcept { return view_; }
  int64_t panels() const noexcept { return ceil_div(view_.n, kLanes); }
  int64_t bytes() const noexcept;  // of codes, scales and biases, padding included

 private:
  Buffer codes_, scale_, bias_;
  Weights view_{};
};

}  // namespace cpuinfer
