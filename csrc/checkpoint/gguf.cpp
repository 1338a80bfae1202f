// Joining the parts of a GGUF checkpoint, and positioned reads of what its directory describes.
#include "checkpoint/gguf.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <utility>

#include "core/text.h"

namespace cpuinfer {

namespace {

// "-00001-of-00003.gguf"
std::string part_suffix(int64_t number, int64_t count) {
  char text[64];
  std::snprintf(text, sizeof text, "-%05lld-of-%05lld.gguf", static_cast<long long>(number),
                static_cast<long long>(count));
  return text;
}

int64_t split_count(const GgufPart& part) {
  if (part.find("split.count") == nullptr) return 1;
  const int64_t count = part.integer("split.count");
  if (count < 1 || count > 99999) {
    throw part.error("key split.count", "is " + std::to_string(count) + ", expected 1 to 99999");
  }
  return count;
}

}  // namespace

Gguf::Gguf(const std::string& path) {
  open_parts(path);
  index_tensors();
}

void Gguf::open_parts(const std::string& path) {
  GgufPart given = read_gguf_part(File(path));
  const int64_t count = split_count(given);
  if (count == 1) {
    parts_.push_back(std::move(given));
    return;
  }
  const int64_t given_index = given.integer("split.no");
  const bool in_range = given_index >= 0 && given_index < count;
  if (!in_range || !path.ends_with(part_suffix(given_index + 1, count))) {
    throw given.error("key split.no", "is " + std::to_string(given_index) + " of " + std::to_string(count) +
                                          ", expected a file whose name ends in " +
                                          (in_range ? part_suffix(given_index + 1, count) : part_suffix(1, count)));
  }
  const int64_t given_number = given_index + 1;
  const std::string stem = path.substr(0, path.size() - part_suffix(1, count).size());
  std::string missing;
  for (int64_t number = 1; number <= count && missing.size() < 1000; ++number) {
    const std::string name = stem + part_suffix(number, count);
    if (::access(name.c_str(), F_OK) != 0) missing += (missing.empty() ? "" : ", ") + printable(name, name.size());
  }
  if (!missing.empty())
    throw given.error("key split.count", "is " + std::to_string(count) + ", but missing: " + missing);
  for (int64_t number = 1; number <= count; ++number) {
    parts_.push_back(number == given_number ? std::move(given)
                                            : read_gguf_part(File(stem + part_suffix(number, count))));
    check_part(parts_.back(), number, count);
  }
}

void Gguf::check_part(const GgufPart& part, int64_t number, int64_t count) const {
  const auto expect = [&part](std::string_view key, int64_t expected) {
    const int64_t found = part.integer(key);
    if (found == expected) return;
    throw part.error("key " + std::string(key), "is " + std::to_string(found) + ", expected " +
                                                    std::to_string(expected) + " as its name and the other parts say");
  };
  expect("split.no", number - 1);
  expect("split.count", count);
  if (head().find("split.tensors.count") == nullptr) return;
  expect("split.tensors.count", head().integer("split.tensors.count"));
}

void Gguf::index_tensors() {
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    for (GgufTensor& tensor : parts_[i].tensors) {
      tensor.part = i;
      tensors_.push_back(&tensor);
      const auto [known, added] = index_.emplace(tensor.name, &tensor);
      if (added) continue;
      const std::size_t other = known->second->part;
      throw parts_[i].error("tensor " + printable(tensor.name),
                            other == i ? "appears twice, expected once"
                                       : "is already in " + parts_[other].file.label() + ", expected once");
    }
  }
  if (head().find("split.tensors.count") == nullptr) return;
  const int64_t expected = head().integer("split.tensors.count");
  if (std::cmp_equal(tensors_.size(), expected)) return;
  throw head().error("key split.tensors.count", "is " + std::to_string(expected) + ", but the parts hold " +
                                                    std::to_string(tensors_.size()) + " tensors");
}

// Lengths are checked again: the file may have changed since it was opened.
void Gguf::read_strings(const GgufValue& value, const std::function<void(uint64_t, std::string_view)>& take) const {
  std::vector<char> raw(value.bytes);
  head().file.read(value.offset, raw.data(), raw.size());
  std::string_view rest(raw.data(), raw.size());
  for (uint64_t i = 0; i < value.count; ++i) {
    uint64_t length = 0;
    const bool has_length = rest.size() >= sizeof length;
    if (has_length) {
      std::memcpy(&length, rest.data(), sizeof length);
      rest.remove_prefix(sizeof length);
    }
    if (!has_length || length > rest.size()) {
      throw head().error("key " + printable(value.key), "string " + std::to_string(i) + " changed while in use");
    }
    take(i, rest.substr(0, length));
    rest.remove_prefix(length);
  }
}

void Gguf::read_numbers(const GgufValue& value, void* out) const {
  head().file.read(value.offset, out, value.bytes);
  if (value.type != GgufType::kBool) return;
  const auto* flags = static_cast<const uint8_t*>(out);
  if (std::any_of(flags, flags + value.count, [](uint8_t flag) { return flag > 1; })) {
    throw head().error("key " + printable(value.key), "holds a bool other than 0 or 1: it changed while in use");
  }
}

const GgufTensor& Gguf::find(std::string_view tensor) const {
  const auto found = index_.find(tensor);
  if (found == index_.end()) throw head().error("tensor " + printable(tensor), "missing");
  return *found->second;
}

void Gguf::read_rows(std::string_view tensor, int64_t begin, int64_t end, void* out, uint64_t out_bytes) const {
  const std::string where = "tensor " + printable(tensor);
  const GgufTensor& t = find(tensor);
  const File& file = parts_[t.part].file;
  if (begin < 0 || begin > end || std::cmp_greater(end, t.rows)) {
    throw Error(Fault::kInvalid, file.label() + ": " + where + ": rows " + std::to_string(begin) + " to " +
                                     std::to_string(end) + ", expected a range within 0 to " + std::to_string(t.rows));
  }
  const uint64_t bytes = static_cast<uint64_t>(end - begin) * t.row_bytes;  // at most t.bytes
  if (out_bytes != bytes) {
    throw Error(Fault::kInvalid, file.label() + ": " + where + ": a buffer of " + std::to_string(out_bytes) +
                                     " bytes, expected " + std::to_string(bytes));
  }
  file.read(t.offset + static_cast<uint64_t>(begin) * t.row_bytes, out, bytes);
}

}  // namespace cpuinfer
