// Binds byte-pair encoding: a vocabulary and its merges in, words in, token ids out; and what writes SentencePieces.
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "tokenizer/byte_pairs.h"
#include "tokenizer/pieces.h"

namespace py = pybind11;

namespace cpuinfer {
namespace {

std::string_view utf8(py::handle text) {
  Py_ssize_t bytes = 0;
  const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &bytes);
  if (data == nullptr) throw py::error_already_set();
  return {data, static_cast<std::size_t>(bytes)};
}

std::unique_ptr<BytePairs> make(const py::list& tokens, const std::vector<int64_t>& left_out, bool whole_words) {
  std::vector<std::string> vocabulary;
  vocabulary.reserve(tokens.size());
  for (const py::handle token : tokens) vocabulary.emplace_back(utf8(token));
  for (const int64_t id : left_out) vocabulary.at(static_cast<std::size_t>(id)).clear();
  return std::make_unique<BytePairs>(std::move(vocabulary), whole_words);
}

// The index of the first merge that is none of this vocabulary, or -1.
py::ssize_t add_merges(BytePairs& self, const py::list& merges) {
  py::ssize_t i = 0;
  for (const py::handle merge : merges) {
    if (!self.add_merge(utf8(merge))) return i;
    ++i;
  }
  return -1;
}

std::vector<int32_t> encode(const BytePairs& self, const py::list& words) {
  std::vector<int32_t> ids;
  for (const py::handle word : words) self.encode(utf8(word), ids);
  return ids;
}

py::bytes write_pieces(const py::list& pieces, const std::vector<float>& scores, const std::vector<uint32_t>& types) {
  if (scores.size() != pieces.size() || types.size() != pieces.size()) {
    throw py::value_error("a piece needs a score and a type");
  }
  std::string out;
  for (std::size_t i = 0; i < scores.size(); ++i) append_piece(out, utf8(pieces[i]), scores[i], types[i]);
  return out;
}

}  // namespace

void bind_tokenizer(py::module_& m) {
  py::class_<BytePairs>(m, "BytePairs", "The tokens of words, by merging pairs.")
      .def(py::init(&make), py::arg("tokens"), py::arg("left_out"), py::arg("whole_words"))
      .def("add_merges", &add_merges, py::arg("merges"))
      .def("encode", &encode, py::arg("words"));
  m.def("write_pieces", &write_pieces, py::arg("pieces"), py::arg("scores"), py::arg("types"),
        "Pieces of a vocabulary as SentencePiece's model file has them.");
}

}  // namespace cpuinfer
