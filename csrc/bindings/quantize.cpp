// Quantisers for Python: matrices in, scales, codes and GGUF's blocks out, without the interpreter lock.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "core/error.h"
#include "quantize/rows.h"

namespace py = pybind11;

namespace cpuinfer {
namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Bytes = py::array_t<uint8_t, py::array::c_style>;

[[noreturn]] void invalid(const std::string& message) { throw Error(Fault::kInvalid, message); }

void expect_shape(const py::array& array, const char* name, int64_t rows, int64_t columns) {
  if (array.ndim() == 2 && array.shape(0) == rows && array.shape(1) == columns) return;
  invalid(std::string(name) + ": expected (" + std::to_string(rows) + ", " + std::to_string(columns) + ")");
}

// float32, float16, or the bits of bf16 as uint16; C-contiguous, rows a multiple of `step`.
Source source_of(const py::array& w, int64_t step) {
  const auto plain = w.flags() & int{py::array::c_style};
  if (w.ndim() != 2 || plain == 0 || step < 4 || step % 4 != 0 || w.shape(1) < 1 || w.shape(1) % step != 0) {
    invalid("weights: expected a contiguous matrix with rows in groups of " + std::to_string(step) +
            ", groups a multiple of 4");
  }
  const int64_t n = w.shape(0), k = w.shape(1);
  if (w.dtype().equal(py::dtype("float32"))) return {SourceKind::kF32, w.data(), n, k};
  if (w.dtype().equal(py::dtype("float16"))) return {SourceKind::kF16, w.data(), n, k};
  if (w.dtype().equal(py::dtype("uint16"))) return {SourceKind::kBf16, w.data(), n, k};
  invalid("weights: " + std::string(py::str(w.dtype())) + ", expected float32, float16 or bf16 as uint16");
}

Importance importance_of(const std::optional<Floats>& given, const Source& source) {
  if (!given) return {};
  if (given->ndim() == 1 && given->shape(0) == source.k) return {given->data(), false};
  expect_shape(*given, "importance", source.rows, source.k);
  return {given->data(), true};
}

std::span<const float> levels_of(const Floats& levels) {
  if (levels.ndim() != 1 || levels.size() < 2 || levels.size() > 256) invalid("levels: expected 2 to 256 numbers");
  return {levels.data(), static_cast<std::size_t>(levels.size())};
}

Bytes blocks_of(const std::string& name, const py::array& w, const std::optional<Floats>& importance, bool search) {
  const BlockType& type = find_block_type(name);
  const Source source = source_of(w, type.elements);
  const Importance counts = importance_of(importance, source);
  Bytes out({source.rows, source.k / type.elements * type.bytes});
  uint8_t* to = out.mutable_data();
  const ReleasedGil release;
  quantize_blocks(type, source, counts, search, to);
  return out;
}

int64_t blocks_in_row(const BlockType& type, const Bytes& raw) {
  if (raw.ndim() != 2 || raw.shape(1) % type.bytes != 0) {
    invalid("blocks: expected rows of whole blocks of " + std::to_string(type.bytes) + " bytes");
  }
  return raw.shape(1) / type.bytes;
}

// (scale, offset or None), [n, k / group] each: the fp32 products that a reader of the blocks makes.
py::tuple scales_of(const std::string& name, const Bytes& raw) {
  const BlockType& type = find_block_type(name);
  const int64_t blocks = blocks_in_row(type, raw) * raw.shape(0), groups = raw.shape(1) / type.bytes * type.groups();
  Floats scale({raw.shape(0), static_cast<py::ssize_t>(groups)}),
      offset({raw.shape(0), static_cast<py::ssize_t>(groups)});
  for (int64_t b = 0; b < blocks; ++b) {
    const BlockScales found = read_scales(type, raw.data() + b * type.bytes);
    for (int g = 0; g < type.groups(); ++g) {
      scale.mutable_data()[b * type.groups() + g] = found.scale_of(g);
      offset.mutable_data()[b * type.groups() + g] = found.offset_of(g);
    }
  }
  if (!type.has_offset()) return py::make_tuple(scale, py::none());
  return py::make_tuple(scale, offset);
}

TwoLevels stored_of(std::span<const float> wanted, NumberRange range) {
  const std::vector<float> alike(wanted.size(), 1.0f);
  if (range.low != range.high) return find_levels(wanted, alike, range);
  TwoLevels one{storable(wanted[0]), {}};
  one.number[0] = range.low;
  return one;
}

// Blocks with codes of 0 whose scales and offsets are nearest to wanted ones.
Bytes represented(const std::string& name, const Floats& scale, const std::optional<Floats>& offset) {
  const BlockType& type = find_block_type(name);
  const auto groups = static_cast<std::size_t>(type.groups());
  if (scale.ndim() != 2 || scale.shape(1) % type.groups() != 0) invalid("scale: expected rows of whole blocks");
  if (offset) expect_shape(*offset, "offset", scale.shape(0), scale.shape(1));
  const int64_t in_row = scale.shape(1) / type.groups();
  Bytes out({scale.shape(0), static_cast<py::ssize_t>(in_row * type.bytes)});
  std::fill_n(out.mutable_data(), out.size(), uint8_t{0});
  for (int64_t b = 0; b < scale.shape(0) * in_row; ++b) {
    BlockScales s;
    s.scale = stored_of({scale.data() + b * type.groups(), groups}, type.scales);
    if (type.has_offset() && offset) s.offset = stored_of({offset->data() + b * type.groups(), groups}, type.offsets);
    write_scales(type, s, out.mutable_data() + b * type.bytes);
  }
  return out;
}

// A copy of blocks with other codes.
Bytes with_codes(const std::string& name, const Bytes& raw, const Bytes& codes) {
  const BlockType& type = find_block_type(name);
  const int64_t in_row = blocks_in_row(type, raw), blocks = in_row * raw.shape(0);
  expect_shape(codes, "codes", raw.shape(0), in_row * type.elements);
  Bytes out({raw.shape(0), raw.shape(1)});
  uint8_t* to = out.mutable_data();
  const uint8_t *from = raw.data(), *code = codes.data();
  const ReleasedGil release;
  std::copy_n(from, blocks * type.bytes, to);
  for (int64_t b = 0; b < blocks; ++b) write_codes(type, code + b * type.elements, to + b * type.bytes);
  return out;
}

Floats best_scales(const Floats& levels, int64_t group, const py::array& w, const std::optional<Floats>& importance,
                   const Floats& plain) {
  const std::span<const float> all = levels_of(levels);
  const Source source = source_of(w, group);
  const Importance counts = importance_of(importance, source);
  expect_shape(plain, "plain", source.rows, source.k / group);
  Floats out({source.rows, source.k / group});
  const float* from = plain.data();
  float* to = out.mutable_data();
  const ReleasedGil release;
  search_scales(all, group, source, counts, from, to);
  return out;
}

py::tuple best_zeros(int last, int64_t group, const py::array& w, const std::optional<Floats>& importance,
                     const Floats& plain, const Bytes& zeros) {
  const Source source = source_of(w, group);
  const Importance counts = importance_of(importance, source);
  expect_shape(plain, "plain", source.rows, source.k / group);
  expect_shape(zeros, "zeros", source.rows, source.k / group);
  Floats scale({source.rows, source.k / group});
  Bytes zero({source.rows, source.k / group});
  std::copy_n(plain.data(), plain.size(), scale.mutable_data());
  std::copy_n(zeros.data(), zeros.size(), zero.mutable_data());
  float* to = scale.mutable_data();
  uint8_t* points = zero.mutable_data();
  {
    const ReleasedGil release;
    search_zeros(last, group, source, counts, to, points);
  }
  return py::make_tuple(scale, zero);
}

Bytes codes_of(const Floats& levels, int64_t group, const py::array& w, const Floats& scale,
               const std::optional<Floats>& offset) {
  const std::span<const float> all = levels_of(levels);
  const Source source = source_of(w, group);
  expect_shape(scale, "scale", source.rows, source.k / group);
  if (offset) expect_shape(*offset, "offset", source.rows, source.k / group);
  Bytes out({source.rows, source.k});
  uint8_t* to = out.mutable_data();
  const float *by = scale.data(), *shift = offset ? offset->data() : nullptr;
  const ReleasedGil release;
  nearest_codes(all, group, source, by, shift, to);
  return out;
}

}  // namespace

void bind_quantize(py::module_& m) {
  m.def("quantize_blocks", &blocks_of, py::arg("type"), py::arg("w"), py::arg("importance") = py::none(), py::kw_only(),
        py::arg("search"));
  m.def("block_scales", &scales_of, py::arg("type"), py::arg("blocks"));
  m.def("represent_blocks", &represented, py::arg("type"), py::arg("scale"), py::arg("offset") = py::none());
  m.def("with_codes", &with_codes, py::arg("type"), py::arg("blocks"), py::arg("codes"));
  m.def("search_scales", &best_scales, py::arg("levels"), py::arg("group"), py::arg("w"), py::arg("importance"),
        py::arg("plain"));
  m.def("search_zeros", &best_zeros, py::arg("last"), py::arg("group"), py::arg("w"), py::arg("importance"),
        py::arg("plain"), py::arg("zeros"));
  m.def("nearest_codes", &codes_of, py::arg("levels"), py::arg("group"), py::arg("w"), py::arg("scale"),
        py::arg("offset") = py::none());
}

}  // namespace cpuinfer
