// A GGUF checkpoint of one file or of several parts: its directory, and reading metadata and tensor rows on demand.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/gguf_part.h"

namespace cpuinfer {

// Immutable once made; every method may run in several threads at once.
class Gguf {
 public:
  // Of a split checkpoint, `path` may be any part ("name-00002-of-00003.gguf"); the others are opened beside it.
  // Throws Error(kCheckpoint) for every defect and for missing parts.
  explicit Gguf(const std::string& path);
  Gguf(const Gguf&) = delete;  // the index points into the parts
  Gguf& operator=(const Gguf&) = delete;

  const std::vector<GgufPart>& parts() const noexcept { return parts_; }
  // The part that carries the metadata; the others repeat only what ties them to it.
  const GgufPart& head() const noexcept { return parts_.front(); }
  // Of all parts, in order.
  const std::vector<const GgufTensor*>& tensors() const noexcept { return tensors_; }

  // The strings of a value of type string, in order; `take` gets (index, bytes).
  void read_strings(const GgufValue& value, const std::function<void(uint64_t, std::string_view)>& take) const;
  // The elements of a value of any other type, value.bytes bytes as stored.
  void read_numbers(const GgufValue& value, void* out) const;
  const GgufTensor& find(std::string_view tensor) const;  // Throws Error(kCheckpoint) if there is none.
  // Rows [begin, end) of a tensor, (end - begin) * row_bytes bytes as stored.
  void read_rows(std::string_view tensor, int64_t begin, int64_t end, void* out, uint64_t out_bytes) const;

 private:
  void open_parts(const std::string& path);
  void check_part(const GgufPart& part, int64_t number, int64_t count) const;
  void index_tensors();

  std::vector<GgufPart> parts_;
  std::vector<const GgufTensor*> tensors_;
  std::map<std::string_view, const GgufTensor*> index_;
};

}  // namespace cpuinfer
