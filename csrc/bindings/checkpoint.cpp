// Binds the checkpoint readers: native directories and values become Python objects, in one call each.
#include <pybind11/numpy.h>

#include <variant>

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

py::array numbers(const Gguf& gguf, const GgufValue& value) {
  py::array array(py::dtype(std::string(type_name(value.type))), static_cast<py::ssize_t>(value.count));
  void* out = array.mutable_data();
  const ReleasedGil release;
  gguf.read_numbers(value, out);
  return array;
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
  py::class_<Gguf>(m, "Gguf", "A GGUF checkpoint, validated when opened.")
      .def(py::init<const std::string&>(), py::arg("path"), py::call_guard<ReleasedGil>())
      .def("files", &files, "(path as bytes, size) of every part.")
      .def("keys", &keys, "The metadata keys, in the order of the file.")
      .def("type", &type_of, py::arg("key"), "(type name of the value or its elements, length or None for a scalar).")
      .def("value", &value_of, py::arg("key"), "int, float, bool, str, list of str, or a numpy array.")
      .def("tensors", &tensors, "(name, row-major shape, type name, bytes, bytes of a row) of every tensor.")
      .def("read_rows", &read_rows, py::arg("name"), py::arg("begin"), py::arg("end"), py::arg("out"),
           "Rows [begin, end) as stored, into a writable C-contiguous uint8 array of exactly their size.");
}

}  // namespace cpuinfer
