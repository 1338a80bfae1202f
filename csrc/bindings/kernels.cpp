// The kernels for Python: the table of sets, packed matrices, and single-threaded products for tests and formats.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "core/error.h"
#include "kernels/codebooks.h"
#include "kernels/dispatch.h"
#include "kernels/pack.h"

namespace py = pybind11;

namespace cpuinfer {

namespace {

[[noreturn]] void invalid(const std::string& message) { throw Error(Fault::kInvalid, message); }

Encoding find_encoding(const std::string& name) {
  if (const auto encoding = encoding_named(name)) return *encoding;
  invalid("encoding '" + name + "': expected int4, int8, table4, f16, bf16, f32 or a block type of GGUF");
}

std::string shape_text(const py::array& array) {
  std::string text = "(";
  for (py::ssize_t i = 0; i < array.ndim(); ++i) text += (i ? ", " : "") + std::to_string(array.shape(i));
  return text + ")";
}

// Checks a C-contiguous, aligned array [rows, columns] of the dtype; rows < 0 takes any number.  Returns the rows.
int64_t check_array(const py::array& array, const char* name, const char* dtype, int64_t rows, int64_t columns) {
  const bool fits = array.ndim() == 2 && (rows < 0 || array.shape(0) == rows) && array.shape(1) == columns;
  constexpr int kPlain = int{py::array::c_style} | int{py::detail::npy_api::NPY_ARRAY_ALIGNED_};
  const bool plain = (array.flags() & kPlain) == kPlain;
  if (fits && plain && array.dtype().equal(py::dtype(dtype))) return array.shape(0);
  invalid(std::string(name) + ": " + (plain ? "" : "not contiguous or not aligned, ") +
          std::string(py::str(array.dtype().attr("name"))) + " " + shape_text(array) + ", expected contiguous " +
          dtype + " (" + (rows < 0 ? "*" : std::to_string(rows)) + ", " + std::to_string(columns) + ")");
}

void check_range(const Weights& w, int64_t row, int64_t rows) {
  if (row >= 0 && rows <= w.n && row <= w.n - rows) return;
  invalid("rows " + std::to_string(row) + " to " + std::to_string(row + rows) + ": the matrix has " +
          std::to_string(w.n));
}

// The data of an array the matrix has (as `fits` says) or has not.
const void* optional_data(const std::optional<py::array>& array, const char* name, const char* dtype, int64_t rows,
                          int64_t columns, bool wanted) {
  if (array.has_value() != wanted) {
    invalid(std::string(name) + (wanted ? ": missing, the matrix has them" : ": given, the matrix has none"));
  }
  if (!wanted) return nullptr;
  check_array(*array, name, dtype, rows, columns);
  return array->data();
}

void set_integer_rows(PackedMatrix& matrix, int64_t row, const py::array& codes, const py::array& scale,
                      const std::optional<py::array>& bias, const std::optional<py::array>& zeros) {
  const Weights& w = matrix.view();
  if (w.cell.bytes == 0) invalid(std::string("integer rows for a matrix of ") + encoding_name(w.encoding));
  const int64_t rows = check_array(codes, "codes", "uint8", -1, w.k), groups = w.k / w.group;
  check_array(scale, "scale", "float16", rows, groups);
  const void* bias_data = optional_data(bias, "bias", "float16", rows, groups, w.cell.bias != 0);
  const void* zeros_data = optional_data(zeros, "zeros", "uint8", rows, groups, w.cell.zeros != 0);
  check_range(w, row, rows);
  const auto* code_data = static_cast<const uint8_t*>(codes.data());
  const auto* scale_data = static_cast<const uint16_t*>(scale.data());
  const ReleasedGil release;
  matrix.set_integer_rows(row, rows, code_data, scale_data, static_cast<const uint16_t*>(bias_data),
                          static_cast<const uint8_t*>(zeros_data));
}

void set_float_rows(PackedMatrix& matrix, int64_t row, const py::array& values) {
  const Weights& w = matrix.view();
  if (!is_float(w.encoding)) invalid(std::string("float rows for a matrix of ") + encoding_name(w.encoding));
  const char* dtype = w.encoding == Encoding::kF32 ? "float32" : w.encoding == Encoding::kF16 ? "float16" : "uint16";
  const int64_t rows = check_array(values, "values", dtype, -1, w.k);
  check_range(w, row, rows);
  const void* data = values.data();
  const ReleasedGil release;
  matrix.set_float_rows(row, rows, data);
}

void set_block_rows(PackedMatrix& matrix, int64_t row, const py::array& blocks) {
  const Weights& w = matrix.view();
  if (!matrix.takes_blocks()) {
    invalid(std::string("rows of blocks for a matrix of ") + encoding_name(w.encoding));
  }
  const int64_t rows = check_array(blocks, "blocks", "uint8", -1, matrix.row_bytes());
  check_range(w, row, rows);
  const auto* data = static_cast<const uint8_t*>(blocks.data());
  const ReleasedGil release;
  matrix.set_block_rows(row, rows, data);
}

const BlockLayout& find_blocks(const std::string& name) {
  const BlockLayout* layout = block_layout(find_encoding(name));
  if (layout == nullptr) invalid("layout '" + name + "': not one of blocks");
  return *layout;
}

// A table's entries, of a byte a number -> int8 [entries, numbers].
template <typename Entry, std::size_t kEntries>
py::array_t<int8_t> numbers_of(const std::array<Entry, kEntries>& table) {
  py::array_t<int8_t> out({kEntries, sizeof(Entry)});
  std::memcpy(out.mutable_data(), table.data(), sizeof table);
  return out;
}

py::array_t<int8_t> codebook(const std::string& name) {
  if (name == "iq4_nl") return py::array_t<int8_t>(16, kIq4NlNumbers);
  if (name == "mxfp4") return py::array_t<int8_t>(16, kE2m1Doubled);
  if (name == "iq2_xxs") return numbers_of(kIq2XxsGrid);
  if (name == "iq2_xs") return numbers_of(kIq2XsGrid);
  if (name == "iq2_s") return numbers_of(kIq2SGrid);
  if (name == "iq3_xxs") return numbers_of(kIq3XxsGrid);
  if (name == "iq3_s") return numbers_of(kIq3SGrid);
  if (name == "iq1_s") return numbers_of(kIq1SGrid);
  invalid("code-book '" + name + "': expected iq4_nl, mxfp4, iq2_xxs, iq2_xs, iq2_s, iq3_xxs, iq3_s or iq1_s");
}

// Rows of blocks as in a file -> fp32 [rows, k].
py::array_t<float> read_blocks_of(const std::string& name, const py::array& raw, int64_t k) {
  const BlockLayout& layout = find_blocks(name);
  if (k < 1 || k % layout.inputs != 0) invalid("k: " + std::to_string(k) + ", expected whole blocks");
  const int64_t blocks = k / layout.inputs, row_bytes = blocks * layout.bytes;
  const int64_t rows = check_array(raw, "raw", "uint8", -1, row_bytes);
  py::array_t<float> out({rows, k});
  const auto* in = static_cast<const uint8_t*>(raw.data());
  float* values = out.mutable_data();
  const ReleasedGil release;
  std::vector<uint8_t> panel(static_cast<std::size_t>(row_bytes * kLanes));
  for (int64_t row = 0; row < rows; ++row) {
    pack_blocks(layout, in + row * row_bytes, 1, blocks, 0, panel.data());
    read_blocks(layout, panel.data(), blocks, 0, values + row * k);
  }
  return out;
}

py::array_t<float> read_row(const PackedMatrix& matrix, int64_t row) {
  check_range(matrix.view(), row, 1);
  py::array_t<float> out(matrix.view().k);
  matrix.read_row(row, out.mutable_data());
  return out;
}

// Owns what QuantizedRows points to, for tiles of up to kMostRows rows.
class Tiles {
 public:
  explicit Tiles(int64_t k)
      : k_(k),
        codes_(static_cast<std::size_t>(kMostRows * k)),
        scale_(codes_.size() / kGroup),
        sum_(scale_.size() * 2) {}
  QuantizedRows at(int row, int rows) {
    return {std::min(kTileRows, rows - row), codes_.data() + row * k_, scale_.data() + row * (k_ / kGroup),
            sum_.data() + row * (k_ / kHalf)};
  }

 private:
  int64_t k_;
  std::vector<int8_t> codes_;
  std::vector<float> scale_;
  std::vector<int32_t> sum_;
};

const KernelSet& set_for(const std::optional<std::string>& isa) { return select_kernels(isa.value_or("")); }

py::array_t<float> matmul(const PackedMatrix& matrix, const py::array& x, const std::optional<std::string>& isa) {
  const Weights& w = matrix.view();
  const KernelSet& set = set_for(isa);
  const int64_t m = check_array(x, "x", "float32", -1, w.k);
  const int64_t panels = matrix.panels(), ldy = panels * kLanes;
  py::array_t<float> y({m, w.n});
  const auto* in = static_cast<const float*>(x.data());
  float* out = y.mutable_data();
  const ReleasedGil release;
  std::vector<float> padded(static_cast<std::size_t>(kMostRows * ldy));
  const bool quantised = !is_float(w.encoding);
  Tiles tiles(quantised ? w.k : 0);
  for (int64_t row = 0; row < m; row += kMostRows) {
    const int rows = static_cast<int>(std::min<int64_t>(kMostRows, m - row));
    const float* x_rows = in + row * w.k;
    for (int tile = 0; quantised && tile < rows; tile += kTileRows) {
      set.quantize(x_rows + tile * w.k, w.k, w.k, tiles.at(tile, rows));
    }
    set.gemm({&w, 0, panels, tiles.at(0, rows), x_rows, w.k, rows, padded.data(), ldy});
    for (int r = 0; r < rows; ++r) std::copy_n(padded.data() + r * ldy, w.n, out + (row + r) * w.n);
  }
  return y;
}

py::tuple quantize_rows(const py::array& x, const std::optional<std::string>& isa) {
  if (x.ndim() != 2 || x.shape(1) % kGroup != 0) {
    invalid("x: shape " + shape_text(x) + ", expected two dimensions and columns in groups of " +
            std::to_string(kGroup));
  }
  const int64_t k = x.shape(1), groups = k / kGroup;
  const int64_t m = check_array(x, "x", "float32", -1, k);
  const KernelSet& set = set_for(isa);
  py::array_t<int8_t> codes({m, k});
  py::array_t<float> scale({m, groups});
  py::array_t<int32_t> sum({m, 2 * groups});
  for (int64_t row = 0; row < m; ++row) {  // one row a tile: [k / 32][1][32] is the row itself
    set.quantize(static_cast<const float*>(x.data()) + row * k, k, k,
                 {1, codes.mutable_data() + row * k, scale.mutable_data() + row * groups,
                  sum.mutable_data() + row * 2 * groups});
  }
  return py::make_tuple(codes, scale, sum);
}

// Which sets there are; `selected` marks the one that runs when nobody names another.
std::vector<py::dict> list_sets() {
  const CpuInfo& cpu = cpu_info();
  const std::string selected = select_kernels().name;
  std::vector<py::dict> sets;
  for (const KernelSet& set : kernel_sets()) {
    py::dict entry;
    entry["name"] = set.name;
    entry["missing"] = missing_for(set, cpu);
    entry["usable"] = missing_for(set, cpu).empty();
    entry["selected"] = selected == set.name;
    entry["tiles"] = set.tiles != nullptr;
    sets.push_back(std::move(entry));
  }
  return sets;
}

}  // namespace

void bind_kernels(py::module_& m) {
  m.def("kernel_sets", &list_sets);
  m.def(
      "select_kernels", [](const std::optional<std::string>& name) { return std::string(set_for(name).name); },
      py::arg("name") = py::none());
  m.def("codebook", &codebook, py::arg("name"));
  m.def("read_blocks", &read_blocks_of, py::arg("layout"), py::arg("raw"), py::arg("k"));
  py::class_<BufferPool>(m, "BufferPool", py::buffer_protocol())
      .def(py::init<std::size_t>(), py::arg("bytes"))
      .def_buffer([](BufferPool& pool) {
        return py::buffer_info(static_cast<uint8_t*>(pool.data()), static_cast<py::ssize_t>(pool.bytes()));
      });
  py::class_<PackedMatrix, std::shared_ptr<PackedMatrix>>(m, "PackedMatrix")
      .def(py::init([](const std::string& encoding, int64_t n, int64_t k, int32_t zero, bool has_bias, bool has_zeros,
                       int64_t group, std::optional<std::vector<float>> table, BufferPool* pool, int64_t room,
                       const PackedMatrix* beside) {
             const PackOptions options{zero, has_bias, has_zeros, group,
                                       table ? std::move(*table) : std::vector<float>()};
             return std::make_shared<PackedMatrix>(find_encoding(encoding), n, k, options,
                                                   PanelPlace{pool, room, beside});
           }),
           py::arg("encoding"), py::arg("n"), py::arg("k"), py::kw_only(), py::arg("zero") = 0,
           py::arg("has_bias") = false, py::arg("has_zeros") = false, py::arg("group") = kGroup,
           py::arg("table") = py::none(), py::arg("pool") = nullptr, py::arg("room") = 0, py::arg("beside") = nullptr)
      .def("set_integer_rows", &set_integer_rows, py::arg("row"), py::arg("codes"), py::arg("scale"),
           py::arg("bias") = py::none(), py::arg("zeros") = py::none())
      .def("set_block_rows", &set_block_rows, py::arg("row"), py::arg("blocks"))
      .def("set_float_rows", &set_float_rows, py::arg("row"), py::arg("values"))
      .def("read_row", &read_row, py::arg("row"))
      .def_property_readonly("encoding", [](const PackedMatrix& p) { return encoding_name(p.view().encoding); })
      .def_property_readonly("n", [](const PackedMatrix& p) { return p.view().n; })
      .def_property_readonly("k", [](const PackedMatrix& p) { return p.view().k; })
      .def_property_readonly("zero", [](const PackedMatrix& p) { return p.view().zero; })
      .def_property_readonly("has_bias", [](const PackedMatrix& p) { return p.view().cell.bias != 0; })
      .def_property_readonly("has_zeros", [](const PackedMatrix& p) { return p.view().cell.zeros != 0; })
      .def_property_readonly("group", [](const PackedMatrix& p) { return p.view().group; })
      .def_property_readonly("bytes", &PackedMatrix::bytes)
      .def_property_readonly("panel_bytes", &PackedMatrix::panel_bytes);
  m.def("matmul", &matmul, py::arg("matrix"), py::arg("x"), py::arg("isa") = py::none());
  m.def("quantize_rows", &quantize_rows, py::arg("x"), py::arg("isa") = py::none());
}

}  // namespace cpuinfer
