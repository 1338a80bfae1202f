// Binds the checkpoint readers: native directories and values become Python objects, in one call each.
#include <pybind11/numpy.h>

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "bindings/bindings.h"
#include "checkpoint/gguf.h"
#include "core/text.h"

namespace py = pybind11;

namespace cpuinfer {

namespace {

const GgufValue& find(const Gguf& gguf, const std::string& key) {
  const GgufValue* value = gguf.head().find(key);
  if (value == nullptr) throw py::key_error(key);
  return *value;
}

py::str decode(const Gguf& gguf, const GgufValue& value, uint64_t i, std::string_view bytes) {
  PyObject* text = PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "strict");
  if (text != nullptr) return py::reinterpret_steal<py::str>(text);
  if (PyErr_ExceptionMatches(PyExc_UnicodeDecodeError) == 0) throw py::error_already_set();
  PyErr_Clear();
  throw gguf.head().error("key " + printable(value.key), (value.is_array ? "string " + std::to_string(i) : "string") +
                                                             " is '" + printable(bytes) + "', expected UTF-8");
}

py::object strings(const Gguf& gguf, const GgufValue& value) {
  py::list list(value.is_array ? value.count : 0);
  py::object only;
  gguf.read_strings(value, [&](uint64_t i, std::string_view bytes) {
    py::str text = decode(gguf, value, i, bytes);
    if (value.is_array) {
      PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), text.release().ptr());
    } else {
      only = std::move(text);
    }
  });
  return value.is_array ? py::object(std::move(list)) : only;
}

// The numbers of an array, seen through a memoryview.
struct Numbers {
  std::vector<uint8_t> bytes;
  const char* format = "B";
  py::ssize_t count = 0, size = 1;  // of one in bytes
};

// As Python's struct module calls a type.
const char* format_of(GgufType type) {
  switch (type) {
    case GgufType::kUint8: return "B";
    case GgufType::kInt8: return "b";
    case GgufType::kUint16: return "H";
    case GgufType::kInt16: return "h";
    case GgufType::kUint32: return "I";
    case GgufType::kInt32: return "i";
    case GgufType::kUint64: return "Q";
    case GgufType::kInt64: return "q";
    case GgufType::kFloat32: return "f";
    case GgufType::kFloat64: return "d";
    default: return "?";
  }
}

py::memoryview numbers(const Gguf& gguf, const GgufValue& value) {
  const auto count = static_cast<py::ssize_t>(value.count);
  auto found = std::make_unique<Numbers>();
  found->bytes.resize(std::max<std::size_t>(value.bytes, 1));  // for a place to point to
  found->format = format_of(value.type);
  found->count = count;
  found->size = count == 0 ? 1 : static_cast<py::ssize_t>(value.bytes) / count;
  {
    const ReleasedGil release;
    gguf.read_numbers(value, found->bytes.data());
  }
  return py::memoryview(py::cast(std::move(found)));
}

// A tensor of fp32 numbers, all of them.
py::memoryview floats(const Gguf& gguf, const std::string& tensor) {
  const GgufTensor& t = gguf.find(tensor);
  if (std::string_view(t.type->name) != "F32") {
    throw Error(Fault::kInvalid, "tensor " + printable(tensor) + ": " + t.type->name + ", expected F32");
  }
  auto out = std::make_unique<Numbers>();
  out->bytes.resize(t.bytes);
  out->format = "f";
  out->count = static_cast<py::ssize_t>(t.bytes / sizeof(float));
  out->size = sizeof(float);
  {
    const ReleasedGil release;
    gguf.read_rows(tensor, 0, static_cast<int64_t>(t.rows), out->bytes.data(), out->bytes.size());
  }
  return py::memoryview(py::cast(std::move(out)));
}

py::object value_of(const Gguf& gguf, const std::string& key) {
  const GgufValue& value = find(gguf, key);
  if (value.type == GgufType::kString) return strings(gguf, value);
  if (value.is_array) return numbers(gguf, value);
  return std::visit([](auto number) { return py::object(py::cast(number)); }, gguf.head().scalar(value));
}

py::list keys(const Gguf& gguf) {
  py::list list;
  for (const GgufValue& value : gguf.head().values) list.append(value.key);
  return list;
}

py::tuple type_of(const Gguf& gguf, const std::string& key) {
  const GgufValue& value = find(gguf, key);
  return py::make_tuple(type_name(value.type), value.is_array ? py::object(py::int_(value.count)) : py::none());
}

py::list files(const Gguf& gguf) {
  py::list list;
  for (const GgufPart& part : gguf.parts()) list.append(py::make_tuple(py::bytes(part.file.path()), part.file.size()));
  return list;
}

py::list tensors(const Gguf& gguf) {
  py::list list;
  for (const GgufTensor* tensor : gguf.tensors()) {
    py::tuple shape(tensor->shape.size());
    for (std::size_t i = 0; i < tensor->shape.size(); ++i) shape[i] = tensor->shape[i];
    list.append(py::make_tuple(tensor->name, shape, tensor->type->name, tensor->bytes, tensor->row_bytes));
  }
  return list;
}

void read_rows(const Gguf& gguf, const std::string& tensor, int64_t begin, int64_t end, py::array& out) {
  if (out.dtype().kind() != 'u' || out.itemsize() != 1 || (out.flags() & py::array::c_style) == 0 || !out.writeable()) {
    throw Error(Fault::kInvalid, "out: expected a writable C-contiguous array of uint8");
  }
  void* data = out.mutable_data();
  const auto bytes = static_cast<uint64_t>(out.nbytes());
  const ReleasedGil release;
  gguf.read_rows(tensor, begin, end, data, bytes);
}

py::list types() {
  py::list list;
  for (const TensorType& type : tensor_types()) {
    list.append(py::make_tuple(type.id, type.name, type.elements, type.bytes));
  }
  return list;
}

}  // namespace

void bind_checkpoint(py::module_& m) {
  m.def("gguf_tensor_types", &types,
        "(number, name, elements in a block, bytes of a block) of every GGUF tensor type.");
  py::class_<Numbers>(m, "Numbers", py::buffer_protocol(), "What a memoryview of an array shows.")
      .def_buffer([](Numbers& self) {
        return py::buffer_info(self.bytes.data(), self.size, self.format, 1, {self.count}, {self.size}, true);
      });
  py::class_<Gguf, std::shared_ptr<Gguf>>(m, "Gguf", "A GGUF checkpoint, validated when opened.")
      .def(py::init<const std::string&>(), py::arg("path"), py::call_guard<ReleasedGil>())
      .def("files", &files, "(path as bytes, size) of every part.")
      .def("keys", &keys, "The metadata keys, in the order of the file.")
      .def("type", &type_of, py::arg("key"), "(type name of the value or its elements, length or None for a scalar).")
      .def("value", &value_of, py::arg("key"), "int, float, bool, str, list of str, or a memoryview of numbers.")
      .def("tensors", &tensors, "(name, row-major shape, type name, bytes, bytes of a row) of every tensor.")
      .def("floats", &floats, py::arg("name"), "A tensor of type F32, as a memoryview of one dimension.")
      .def("read_rows", &read_rows, py::arg("name"), py::arg("begin"), py::arg("end"), py::arg("out"),
           "Rows [begin, end) as stored, into a writable C-contiguous uint8 array of exactly their size.");
}

}  // namespace cpuinfer
