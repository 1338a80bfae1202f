// One GGUF file: its header read and checked whole, its arrays and tensors left where they are.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "checkpoint/tensor_types.h"
#include "core/error.h"
#include "core/file.h"

namespace cpuinfer {

// Numbered as in the file.
enum class GgufType : uint32_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64,
};

const char* type_name(GgufType type) noexcept;  // "uint8", ..., "string", "array"
uint32_t type_bytes(GgufType type) noexcept;    // 0 for strings and arrays, whose size is their own

// A metadata entry.  A string is stored as a uint64 length and its bytes.
struct GgufValue {
  std::string key;
  GgufType type;  // of the value, or of the elements; never kArray
  bool is_array;
  uint64_t count;   // elements; 1 unless an array
  uint64_t offset;  // in the file, of the first element
  uint64_t bytes;   // of all elements
};

std::string describe(const GgufValue& value);  // "an array of 3 int32", "of type string"

using GgufScalar = std::variant<uint64_t, int64_t, double, bool>;

struct GgufTensor {
  std::string name;
  const TensorType* type;
  std::vector<uint64_t> shape;  // 1 to 4 dimensions, row-major: the last is the row, stored in blocks
  uint64_t rows;                // product of all dimensions but the last
  uint64_t row_bytes;
  uint64_t bytes;   // rows * row_bytes
  uint64_t offset;  // in the file
  std::size_t part = 0;
};

struct GgufPart {
  File file;
  std::vector<GgufValue> values;    // in the order of the file
  std::vector<GgufTensor> tensors;  // likewise
  // std::map: a hash table could be driven to quadratic time by keys made to collide.
  std::map<std::string, std::size_t, std::less<>> index;  // key -> place in `values`

  const GgufValue* find(std::string_view key) const;
  // A value that is neither an array nor a string.
  GgufScalar scalar(const GgufValue& value) const;
  // A scalar of any integer type; Error(kCheckpoint) if the key is missing or of another type.
  int64_t integer(std::string_view key) const;
  Error error(std::string_view where, const std::string& text) const;
};

// Throws Error(kCheckpoint), "FILE: key or tensor: what was found, what was expected", for every defect.  Allocates no
// more than the size of the file plus a constant, whatever the header claims.
GgufPart read_gguf_part(File file);

}  // namespace cpuinfer
