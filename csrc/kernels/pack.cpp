// Fills and reads the panels of a packed matrix; the layout is described in kernels.h.
#include "kernels/pack.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

#include "core/error.h"
#include "kernels/half.h"
#include "kernels/transpose.h"

namespace cpuinfer {

namespace {

constexpr int64_t kLargest = int64_t{1} << 30;  // of n and k: products of sizes stay far from overflow
constexpr int64_t kBlock = kLanes * 4;          // bytes: 16 rows of four codes
constexpr int64_t kHalfGroup = kGroup / 2;      // a nibble's partner is this much further along k

[[noreturn]] void fail(const std::string& message) { throw Error(Fault::kUnsupportedFormat, message); }

int64_t row_bytes_of(Encoding encoding, int64_t k) {
  switch (encoding) {
    case Encoding::kInt4:
    case Encoding::kTable4: return k / 2;
    case Encoding::kInt8: return k;
    case Encoding::kF16:
    case Encoding::kBF16: return k * 2;
    case Encoding::kF32: return k * 4;
    default: break;
  }
  const BlockLayout& layout = *block_layout(encoding);
  return k / layout.inputs * layout.bytes;
}

void check_shape(Encoding encoding, int64_t n, int64_t k, const PackOptions& options) {
  const std::string shape = "a matrix of shape (" + std::to_string(n) + ", " + std::to_string(k) + ")";
  if (n < 1 || k < 1 || n > kLargest || k > kLargest) {
    fail(shape + ": expected sizes from 1 to " + std::to_string(kLargest));
  }
  if (is_float(encoding)) return;
  const BlockLayout* layout = block_layout(encoding);
  const int64_t group = layout != nullptr ? layout->inputs : options.group;
  if (group < kGroup || group % kGroup != 0 || k % group != 0) {
    fail(shape + ": " + encoding_name(encoding) + " needs inputs in groups of " +
         std::to_string(group < kGroup ? kGroup : group));
  }
  const int32_t last = encoding == Encoding::kInt8 ? 255 : 15;
  if (options.zero < 0 || options.zero > last) {
    fail("zero point " + std::to_string(options.zero) + ": expected a code, 0 to " + std::to_string(last));
  }
  if ((encoding == Encoding::kTable4) != (options.table.size() == 16)) {
    fail(std::string(encoding_name(encoding)) + ": a table of " + std::to_string(options.table.size()) + " numbers");
  }
}

// Sets the table to integers of 16 bits: with 127 * 256 as the largest magnitude both bytes of a number are factors of
// a dot product that cannot overflow.
void round_table(const std::vector<float>& table, Weights& view) {
  float largest = 0;
  for (const float number : table) {
    if (!std::isfinite(number)) fail("a table with a number that is not finite");
    largest = std::max(largest, std::fabs(number));
  }
  if (largest > 0) view.table_scale = largest / (127 * 256);
  for (std::size_t i = 0; i < table.size(); ++i) {
    view.table[i] = static_cast<int16_t>(std::lrint(table[i] / view.table_scale));
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

// values [lanes][columns] -> lanes [lane, end) of columns of 16, which begin `stride` bytes apart.
template <typename T>
void interleave(const T* values, int64_t columns, int64_t lane, int64_t end, uint8_t* out,
                int64_t stride = kLanes * static_cast<int64_t>(sizeof(T))) {
  for (int64_t c = 0; c < columns; ++c, out += stride) {
    for (int64_t l = lane; l < end; ++l) reinterpret_cast<T*>(out)[l] = values[(l - lane) * columns + c];
  }
}

Cell cell_of(Encoding encoding, const PackOptions& options) {
  Cell cell{.codes = row_bytes_of(encoding, options.group) * kLanes};
  cell.bytes = cell.codes + kLanes * static_cast<int64_t>(sizeof(uint16_t));
  if (options.has_bias) {
    cell.bias = cell.bytes;
    cell.bytes += kLanes * static_cast<int64_t>(sizeof(uint16_t));
  }
  if (options.has_zeros) {
    cell.zeros = cell.bytes;
    cell.bytes += kLanes;
  }
  return cell;
}

}  // namespace

bool is_float(Encoding encoding) noexcept {
  return encoding == Encoding::kF16 || encoding == Encoding::kBF16 || encoding == Encoding::kF32;
}

const char* encoding_name(Encoding encoding) noexcept {
  switch (encoding) {
    case Encoding::kInt4: return "int4";
    case Encoding::kInt8: return "int8";
    case Encoding::kF16: return "f16";
    case Encoding::kBF16: return "bf16";
    case Encoding::kF32: return "f32";
    case Encoding::kTable4: return "table4";
    default: return block_layout(encoding)->name;
  }
}

std::optional<Encoding> encoding_named(std::string_view name) noexcept {
  for (int i = 0; i <= static_cast<int>(Encoding::kIq1M); ++i) {
    if (name == encoding_name(static_cast<Encoding>(i))) return static_cast<Encoding>(i);
  }
  return std::nullopt;
}

PackedMatrix::PackedMatrix(Encoding encoding, int64_t n, int64_t k, const PackOptions& options, const PanelPlace& place)
    : room_(place.room), blocks_(block_layout(encoding)) {
  check_shape(encoding, n, k, options);
  view_ = {.encoding = encoding, .zero = options.zero, .n = n, .k = k, .codes = nullptr, .panel_bytes = 0};
  if (!is_float(encoding) && blocks_ == nullptr) {
    view_.group = options.group;
    view_.cell = cell_of(encoding, options);
    panel_bytes_ = k / options.group * view_.cell.bytes;
  } else {
    panel_bytes_ = kLanes * row_bytes_of(encoding, k);
  }
  round_table(options.table, view_);
  if (place.beside != nullptr) {
    const PackedMatrix& first = *place.beside;
    if (first.room_ != panel_bytes_ || first.panels() != panels()) {
      throw Error(Fault::kInvalid, std::to_string(panels()) + " panels of " + std::to_string(panel_bytes_) +
                                       " bytes beside " + std::to_string(first.panels()) + " with room for " +
                                       std::to_string(first.room_) + " behind each");
    }
    data_ = first.data_;
    begin_ = first.begin_ + first.panel_bytes_;
    view_.panel_bytes = first.view_.panel_bytes;
  } else {
    if (room_ < 0 || room_ > kLargest) throw Error(Fault::kInvalid, "room of " + std::to_string(room_) + " bytes");
    view_.panel_bytes = panel_bytes_ + room_;
    const auto bytes = static_cast<std::size_t>(panels() * view_.panel_bytes);
    data_ = place.pool != nullptr ? place.pool->take(bytes) : Buffer(bytes);
  }
  view_.codes = data_.as<uint8_t>() + begin_;
}

void PackedMatrix::set_integer_rows(int64_t row, int64_t rows, const uint8_t* codes, const uint16_t* scale,
                                    const uint16_t* bias, const uint8_t* zeros) {
  const int64_t k = view_.k, scales = k / view_.group;
  const Cell& cell = view_.cell;
  const bool nibbles = view_.encoding != Encoding::kInt8;
  uint32_t excess = 0;
  for_panels(row, rows, [&](int64_t panel, int64_t lane, int64_t end, int64_t source) {
    uint8_t* out = panel_at(panel);
    for (int64_t g = 0; g < k / kGroup; ++g) {
      uint8_t* group = out + code_offset(g * kGroup);
      for (int64_t l = lane; l < end; ++l) {
        const uint8_t* in = codes + (source + l - lane) * k + g * kGroup;
        if (nibbles) {
          excess |= pack_nibbles(in, group + 4 * l);
        } else {
          pack_bytes(in, group + 4 * l);
        }
      }
    }
    interleave(scale + source * scales, scales, lane, end, out + cell.codes, cell.bytes);
    if (bias) interleave(bias + source * scales, scales, lane, end, out + cell.bias, cell.bytes);
    if (zeros) interleave(zeros + source * scales, scales, lane, end, out + cell.zeros, cell.bytes);
  });
  if (excess) {
    fail("rows " + std::to_string(row) + " to " + std::to_string(row + rows - 1) + ": a 4-bit code above 15");
  }
}

// Blocks of integers into lanes [lane, lane + rows) of a panel's cells.
void PackedMatrix::set_cells(const uint8_t* blocks, int64_t rows, int64_t lane, uint8_t* panel) {
  const Cell& cell = view_.cell;
  const int64_t groups = view_.k / kGroup, block_bytes = row_bytes() / groups, stride = groups * block_bytes;
  const int64_t codes = cell.bias ? 4 : 2;  // in a block, behind its halves
  const int words = view_.encoding == Encoding::kInt4 ? 4 : 8;
  const uint32_t flip = view_.encoding == Encoding::kInt4 ? 0 : 0x80808080u;  // a signed byte plus 128
  for (int64_t g = 0; g < groups; ++g, panel += cell.bytes, blocks += block_bytes) {
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(panel + cell.codes + (lane + r) * 2, blocks + r * stride, 2);
      if (cell.bias) std::memcpy(panel + cell.bias + (lane + r) * 2, blocks + r * stride + 2, 2);
    }
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) {
      for (int s = 0; s < words; s += 4) {
        FourWords columns[4];
        transpose_words(blocks + r * stride + codes + 4 * s, stride, columns);
        for (int c = 0; c < 4; ++c) {
          columns[c] ^= flip;
          std::memcpy(panel + (s + c) * kBlock + 4 * (lane + r), &columns[c], sizeof columns[c]);
        }
      }
    }
    for (; r < rows; ++r) {
      for (int s = 0; s < words; ++s) {
        const uint32_t word = four_codes(blocks + r * stride + codes + 4 * s) ^ flip;
        std::memcpy(panel + s * kBlock + 4 * (lane + r), &word, sizeof word);
      }
    }
  }
}

void PackedMatrix::set_block_rows(int64_t row, int64_t rows, const uint8_t* blocks) {
  const int64_t bytes = row_bytes();
  for_panels(row, rows, [&](int64_t panel, int64_t lane, int64_t end, int64_t source) {
    const uint8_t* first = blocks + source * bytes;
    if (blocks_ == nullptr) return set_cells(first, end - lane, lane, panel_at(panel));
    pack_blocks(*blocks_, first, end - lane, view_.k / blocks_->inputs, lane, panel_at(panel));
  });
}

void PackedMatrix::set_float_rows(int64_t row, int64_t rows, const void* values) {
  const int64_t k = view_.k;
  for_panels(row, rows, [&](int64_t panel, int64_t lane, int64_t end, int64_t source) {
    if (view_.encoding == Encoding::kF32) {
      interleave(static_cast<const uint32_t*>(values) + source * k, k, lane, end, panel_at(panel));
    } else {
      interleave(static_cast<const uint16_t*>(values) + source * k, k, lane, end, panel_at(panel));
    }
  });
}

// Where the group of 32 that input i is in begins, from its panel on.
int64_t PackedMatrix::code_offset(int64_t i) const noexcept {
  const Cell& cell = view_.cell;
  return i / view_.group * cell.bytes + i % view_.group / kGroup * (cell.codes / (view_.group / kGroup));
}

float PackedMatrix::read_integer(int64_t row, int64_t i) const noexcept {
  const int64_t lane = row % kLanes, in = i % kGroup;
  const uint8_t* panel = panel_at(row / kLanes);
  const uint8_t* cell = panel + i / view_.group * view_.cell.bytes;
  const uint8_t* group = panel + code_offset(i);
  const auto half_at = [&](int64_t offset) {
    return half_to_float(reinterpret_cast<const uint16_t*>(cell + offset)[lane]);
  };
  int code = 0;
  if (view_.encoding == Encoding::kInt8) {
    code = group[in / 4 * kBlock + lane * 4 + in % 4];
  } else {
    const int64_t low = in % kHalfGroup;
    const uint8_t pair = group[low / 4 * kBlock + lane * 4 + low % 4];
    code = in < kHalfGroup ? pair & 15 : pair >> 4;
  }
  const int zero = view_.cell.zeros ? cell[view_.cell.zeros + lane] : view_.zero;
  const float value = view_.encoding == Encoding::kTable4 ? view_.table_scale * static_cast<float>(view_.table[code])
                                                          : static_cast<float>(code - zero);
  return std::fma(half_at(view_.cell.codes), value, view_.cell.bias ? half_at(view_.cell.bias) : 0.0f);
}

void PackedMatrix::read_row(int64_t row, float* out) const noexcept {
  const int64_t k = view_.k, lane = row % kLanes;
  const uint8_t* panel = panel_at(row / kLanes);
  if (blocks_ != nullptr) return read_blocks(*blocks_, panel, k / blocks_->inputs, lane, out);
  for (int64_t i = 0; i < k; ++i) {
    const int64_t element = i * kLanes + lane;  // of a float encoding
    switch (view_.encoding) {
      case Encoding::kF16: out[i] = half_to_float(reinterpret_cast<const uint16_t*>(panel)[element]); break;
      case Encoding::kBF16:
        out[i] = std::bit_cast<float>(static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(panel)[element]) << 16);
        break;
      case Encoding::kF32: out[i] = reinterpret_cast<const float*>(panel)[element]; break;
      default: out[i] = read_integer(row, i);
    }
  }
}

bool PackedMatrix::takes_blocks() const noexcept {
  const bool cells = view_.cell.bytes != 0 && view_.group == kGroup && view_.cell.zeros == 0;
  return blocks_ != nullptr || (cells && view_.encoding != Encoding::kTable4);
}

int64_t PackedMatrix::row_bytes() const noexcept {
  if (view_.cell.bytes == 0) return row_bytes_of(view_.encoding, view_.k);
  return view_.k / view_.group * view_.cell.bytes / kLanes;
}

std::optional<Weights> woven(const PackedMatrix& first, const PackedMatrix& second) noexcept {
  const Weights &a = first.view(), &b = second.view();
  const bool in_turn = b.codes == a.codes + first.panel_bytes() && b.panel_bytes == a.panel_bytes &&
                       a.panel_bytes == first.panel_bytes() + second.panel_bytes();
  const bool alike = a.encoding == b.encoding && a.k == b.k && a.zero == b.zero && a.group == b.group &&
                     a.cell == b.cell && std::ranges::equal(a.table, b.table) && a.table_scale == b.table_scale;
  if (!in_turn || !alike) return std::nullopt;
  Weights both = a;
  both.n = 2 * first.panels() * kLanes;
  both.panel_bytes = first.panel_bytes();
  return both;
}

}  // namespace cpuinfer
