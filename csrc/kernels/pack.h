// Packing: from the canonical form (codes, scales, biases, row-major) to the panels the kernels read.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "core/buffer.h"
#include "core/rounding.h"
#include "kernels/blocks.h"
#include "kernels/kernels.h"

namespace cpuinfer {

bool is_float(Encoding encoding) noexcept;              // others multiply quantised activations
const char* encoding_name(Encoding encoding) noexcept;  // "int4", "q4_k", ...
std::optional<Encoding> encoding_named(std::string_view name) noexcept;

class PackedMatrix;

// Where a matrix's panels lie: in memory of their own or of a pool, with room behind each for a partner's, or in the
// room that a partner left.  Two matrices that are read together are then one run of bytes.
struct PanelPlace {
  BufferPool* pool = nullptr;
  int64_t room = 0;                      // bytes behind each panel
  const PackedMatrix* beside = nullptr;  // of as many panels, with room for these; its pool and room are taken
};

// What a matrix has beside its codes.
struct PackOptions {
  int32_t zero = 0;               // kInt4, kInt8
  bool has_bias = false;          // kInt4, kInt8
  bool has_zeros = false;         // kInt4, kInt8: a zero point for each group, instead of `zero`
  int64_t group = kGroup;         // kInt4, kInt8, kTable4
  std::vector<float> table = {};  // kTable4: sixteen numbers; kept as 16-bit integers times one scale
};

// Owns one packed matrix.  Filled row range by row range, so the unpacked matrix never has to exist whole.  Several
// threads may fill it at once if their ranges are disjoint and start at multiples of kLanes.
class PackedMatrix {
 public:
  // Throws Error(kUnsupportedFormat) unless n, k >= 1, k is a multiple of the group or block, and the options fit the
  // encoding; Error(kInvalid) if the room is not for these panels.
  PackedMatrix(Encoding encoding, int64_t n, int64_t k, const PackOptions& options = {}, const PanelPlace& place = {});

  // Rows [row, row + rows) of kInt4, kInt8 and kTable4: codes uint8 [rows][k] (0..15 but for kInt8, else
  // Error(kUnsupportedFormat)); scale, bias fp16 and zeros uint8 [rows][k / group], null where the matrix has none.
  void set_integer_rows(int64_t row, int64_t rows, const uint8_t* codes, const uint16_t* scale, const uint16_t* bias,
                        const uint8_t* zeros = nullptr);
  // Rows of a float encoding: values [rows][k], two or four bytes each as the encoding says.
  void set_float_rows(int64_t row, int64_t rows, const void* values);
  // Rows of a block encoding, as in the file; or, of integers in groups of 32 without zero points, of blocks of an fp16
  // scale, an fp16 bias if there are any, and codes: 16 bytes of nibbles, the low ones first, or 32 signed bytes.
  void set_block_rows(int64_t row, int64_t rows, const uint8_t* blocks);
  bool takes_blocks() const noexcept;  // whether set_block_rows is for this matrix

  // Row -> fp32 [k]: value = fma(scale, code - zero, bias).  For embeddings; baseline code.
  void read_row(int64_t row, float* out) const noexcept;

  const Weights& view() const noexcept { return view_; }
  int64_t panels() const noexcept { return ceil_div(view_.n, kLanes); }
  int64_t bytes() const noexcept { return panels() * panel_bytes_; }
  int64_t panel_bytes() const noexcept { return panel_bytes_; }
  int64_t row_bytes() const noexcept;  // of one row's codes, or blocks

 private:
  uint8_t* panel_at(int64_t panel) noexcept { return data_.as<uint8_t>() + begin_ + panel * view_.panel_bytes; }
  const uint8_t* panel_at(int64_t panel) const noexcept { return view_.codes + panel * view_.panel_bytes; }
  int64_t code_offset(int64_t i) const noexcept;
  void set_cells(const uint8_t* blocks, int64_t rows, int64_t lane, uint8_t* panel);
  float read_integer(int64_t row, int64_t i) const noexcept;

  Buffer data_;
  int64_t begin_ = 0, room_ = 0;  // of the first panel in data_; behind each
  int64_t panel_bytes_ = 0;       // of one, without the room
  const BlockLayout* blocks_ = nullptr;
  Weights view_{};
};

// Two matrices whose panels lie in turn, and are encoded alike, as one of both: panel 2 i is the first's, 2 i + 1 the
// second's.
std::optional<Weights> woven(const PackedMatrix& first, const PackedMatrix& second) noexcept;

}  // namespace cpuinfer
