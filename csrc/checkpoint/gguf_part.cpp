// The validating parser of GGUF versions 2 and 3: nothing the header says is used before it is checked.
#include "checkpoint/gguf_part.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <utility>

#include "checkpoint/header_cursor.h"
#include "core/text.h"

namespace cpuinfer {

static_assert(std::endian::native == std::endian::little, "numbers are read as they are stored: little-endian");

namespace {

// Far above real files (some 3,000 entries): it bounds the memory a hostile header can take.
constexpr uint64_t kMostEntries = uint64_t{1} << 17;
constexpr uint64_t kLeastKeyEntry = 8 + 1 + 4 + 1;             // length, name, type, value
constexpr uint64_t kLeastTensorEntry = 8 + 1 + 4 + 8 + 4 + 8;  // length, name, dimensions, one of them, type, offset
constexpr uint32_t kMostDimensions = 4;
constexpr uint64_t kDefaultAlignment = 32;
constexpr int64_t kLeastAlignment = 8;  // the specification: a multiple of 8
constexpr int64_t kMostAlignment = 1 << 20;

struct TypeRecord {
  const char* name;
  uint32_t bytes;
};
constexpr TypeRecord kTypes[] = {{"uint8", 1},  {"int8", 1},    {"uint16", 2}, {"int16", 2},  {"uint32", 4},
                                 {"int32", 4},  {"float32", 4}, {"bool", 1},   {"string", 0}, {"array", 0},
                                 {"uint64", 8}, {"int64", 8},   {"float64", 8}};

GgufType read_type(HeaderCursor& in) {
  const auto id = in.number<uint32_t>();
  if (id >= std::size(kTypes)) {
    in.fail("value type " + std::to_string(id) + " is unknown, expected 0 to " + std::to_string(std::size(kTypes) - 1));
  }
  return static_cast<GgufType>(id);
}

void skip_strings(HeaderCursor& in, uint64_t count) {
  if (count > in.remaining() / sizeof(uint64_t)) {
    in.fail("declares " + std::to_string(count) + " strings, but only " + std::to_string(in.remaining()) +
            " bytes are left");
  }
  for (uint64_t i = 0; i < count; ++i) {
    const auto length = in.number<uint64_t>();
    if (length > in.remaining()) {
      in.fail("string " + std::to_string(i) + " declares " + std::to_string(length) + " bytes, but only " +
              std::to_string(in.remaining()) + " are left");
    }
    in.skip(length);
  }
}

void skip_numbers(HeaderCursor& in, GgufType type, uint64_t count) {
  if (count > in.remaining() / type_bytes(type)) {
    in.fail("declares " + std::to_string(count) + " values of type " + type_name(type) + ", but only " +
            std::to_string(in.remaining()) + " bytes are left");
  }
  if (type != GgufType::kBool) return in.skip(count * type_bytes(type));
  for (uint64_t i = 0; i < count; ++i) {
    const auto value = in.number<uint8_t>();
    if (value > 1)
      in.fail("element " + std::to_string(i) + " is a bool of value " + std::to_string(value) + ", expected 0 or 1");
  }
}

GgufValue read_value(HeaderCursor& in) {
  GgufValue value{in.name(), GgufType::kUint8, false, 1, 0, 0};
  in.where = "key " + printable(value.key);
  value.type = read_type(in);
  if (value.type == GgufType::kArray) {
    value.is_array = true;
    value.type = read_type(in);
    if (value.type == GgufType::kArray)
      in.fail("is an array of arrays, expected an array of numbers, bools or strings");
    value.count = in.number<uint64_t>();
  }
  value.offset = in.offset();
  if (value.type == GgufType::kString) {
    skip_strings(in, value.count);
  } else {
    skip_numbers(in, value.type, value.count);
  }
  value.bytes = in.offset() - value.offset;
  return value;
}

std::string shape_text(const std::vector<uint64_t>& shape) {
  std::string text = "(";
  for (const uint64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + ")";
}

// Fills rows, row_bytes and bytes; every product is known to fit before it is used.
void measure(const HeaderCursor& in, GgufTensor& tensor) {
  const uint64_t row = tensor.shape.back();
  if (row % tensor.type->elements != 0) {
    in.fail("rows of " + std::to_string(row) + " elements, expected a multiple of " +
            std::to_string(tensor.type->elements) + ", the block size of " + tensor.type->name);
  }
  constexpr auto kMost = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  uint64_t elements = row;
  bool overflow = __builtin_mul_overflow(row / tensor.type->elements, uint64_t{tensor.type->bytes}, &tensor.row_bytes);
  tensor.rows = 1;
  for (std::size_t i = 0; i + 1 < tensor.shape.size(); ++i) {
    overflow |= __builtin_mul_overflow(elements, tensor.shape[i], &elements);
    overflow |= __builtin_mul_overflow(tensor.rows, tensor.shape[i], &tensor.rows);
  }
  overflow |= __builtin_mul_overflow(tensor.rows, tensor.row_bytes, &tensor.bytes);
  if (overflow || elements > kMost || tensor.bytes > kMost) {
    in.fail("shape " + shape_text(tensor.shape) + " has more elements than any file can hold");
  }
}

GgufTensor read_tensor(HeaderCursor& in) {
  GgufTensor tensor{};
  tensor.name = in.name();
  in.where = "tensor " + printable(tensor.name);
  const auto dimensions = in.number<uint32_t>();
  if (dimensions == 0 || dimensions > kMostDimensions) {
    in.fail("has " + std::to_string(dimensions) + " dimensions, expected 1 to " + std::to_string(kMostDimensions));
  }
  tensor.shape.resize(dimensions);
  for (uint32_t i = 0; i < dimensions; ++i) {
    const auto size = in.number<uint64_t>();
    if (size == 0) in.fail("dimension " + std::to_string(i) + " is 0, expected at least 1");
    tensor.shape[dimensions - 1 - i] = size;  // the file names the fastest-running dimension first
  }
  const auto type = in.number<uint32_t>();
  tensor.type = find_tensor_type(type);
  if (tensor.type == nullptr) {
    in.fail("type number " + std::to_string(type) + " is unknown or was removed from GGUF, expected one of 0 to " +
            std::to_string(tensor_types().back().id));
  }
  tensor.offset = in.number<uint64_t>();
  measure(in, tensor);
  return tensor;
}

void read_preamble(HeaderCursor& in) {
  if (in.remaining() == 0) in.fail("the file is empty, expected a GGUF file");
  char magic[4];
  for (char& c : magic) c = static_cast<char>(in.number<uint8_t>());
  if (std::string_view(magic, 4) != "GGUF") {
    in.fail("starts with '" + printable({magic, 4}) + "', expected 'GGUF': not a GGUF file");
  }
  const auto version = in.number<uint32_t>();
  if (version != 0 && (version & 0xFFFF) == 0) in.fail("big-endian GGUF, expected little-endian");
  if (version != 2 && version != 3) in.fail("GGUF version " + std::to_string(version) + ", expected 2 or 3");
}

uint64_t read_count(HeaderCursor& in, const char* what, uint64_t least_bytes) {
  const auto count = in.number<uint64_t>();
  const uint64_t most = std::min(kMostEntries, in.remaining() / least_bytes);
  if (count > most) {
    in.fail("declares " + std::to_string(count) + " " + what + ", expected at most " + std::to_string(most) +
            " in a file of this size");
  }
  return count;
}

uint64_t read_alignment(const GgufPart& part) {
  const GgufValue* value = part.find("general.alignment");
  if (value == nullptr) return kDefaultAlignment;
  if (value->is_array || value->type != GgufType::kUint32) {
    throw part.error("key general.alignment", "is " + describe(*value) + ", expected a uint32");
  }
  const int64_t alignment = part.integer("general.alignment");
  if (alignment < kLeastAlignment || alignment > kMostAlignment ||
      !std::has_single_bit(static_cast<uint64_t>(alignment))) {
    throw part.error("key general.alignment", "is " + std::to_string(alignment) + ", expected a power of two, " +
                                                  std::to_string(kLeastAlignment) + " to " +
                                                  std::to_string(kMostAlignment));
  }
  return static_cast<uint64_t>(alignment);
}

// Turns offsets into the data section into offsets into the file: aligned, inside the file, disjoint.
void place_tensors(GgufPart& part, uint64_t header_bytes) {
  const uint64_t alignment = read_alignment(part);
  const uint64_t data = (header_bytes + alignment - 1) / alignment * alignment;
  const uint64_t data_bytes = part.file.size() > data ? part.file.size() - data : 0;
  std::vector<const GgufTensor*> order;
  for (GgufTensor& tensor : part.tensors) {
    const std::string where = "tensor " + printable(tensor.name);
    if (tensor.offset % alignment != 0) {
      throw part.error(where, "offset " + std::to_string(tensor.offset) + ", expected a multiple of the alignment " +
                                  std::to_string(alignment));
    }
    if (tensor.offset > data_bytes || tensor.bytes > data_bytes - tensor.offset) {
      throw part.error(where, "needs " + std::to_string(tensor.bytes) + " bytes at offset " +
                                  std::to_string(tensor.offset) + " of the data, but the file has only " +
                                  std::to_string(data_bytes) + " bytes of data: it is truncated or damaged");
    }
    tensor.offset += data;
    order.push_back(&tensor);
  }
  std::ranges::sort(order, {}, &GgufTensor::offset);
  for (std::size_t i = 1; i < order.size(); ++i) {
    if (order[i]->offset - order[i - 1]->offset < order[i - 1]->bytes) {
      throw part.error("tensor " + printable(order[i]->name),
                       "overlaps tensor " + printable(order[i - 1]->name) + ", expected bytes of its own");
    }
  }
}

}  // namespace

const char* type_name(GgufType type) noexcept { return kTypes[static_cast<uint32_t>(type)].name; }

uint32_t type_bytes(GgufType type) noexcept { return kTypes[static_cast<uint32_t>(type)].bytes; }

std::string describe(const GgufValue& value) {
  return value.is_array ? "an array of " + std::to_string(value.count) + " " + type_name(value.type)
                        : std::string("of type ") + type_name(value.type);
}

Error GgufPart::error(std::string_view where, const std::string& text) const {
  return Error(Fault::kCheckpoint, file.label() + ": " + std::string(where) + ": " + text);
}

const GgufValue* GgufPart::find(std::string_view key) const {
  const auto found = index.find(key);
  return found == index.end() ? nullptr : &values[found->second];
}

GgufScalar GgufPart::scalar(const GgufValue& value) const {
  uint8_t raw[8] = {};
  file.read(value.offset, raw, type_bytes(value.type));
  const auto as = [&raw]<typename T>(T number) {
    std::memcpy(&number, raw, sizeof(T));
    return number;
  };
  switch (value.type) {
    case GgufType::kUint8: return uint64_t{as(uint8_t{})};
    case GgufType::kInt8: return int64_t{as(int8_t{})};
    case GgufType::kUint16: return uint64_t{as(uint16_t{})};
    case GgufType::kInt16: return int64_t{as(int16_t{})};
    case GgufType::kUint32: return uint64_t{as(uint32_t{})};
    case GgufType::kInt32: return int64_t{as(int32_t{})};
    case GgufType::kUint64: return as(uint64_t{});
    case GgufType::kInt64: return as(int64_t{});
    case GgufType::kFloat32: return double{as(float{})};
    case GgufType::kFloat64: return as(double{});
    case GgufType::kBool: return as(uint8_t{}) != 0;
    case GgufType::kString:
    case GgufType::kArray: break;
  }
  throw error("key " + printable(value.key), "is " + describe(value) + ", expected a number");
}

int64_t GgufPart::integer(std::string_view key) const {
  const std::string where = "key " + printable(key);
  const GgufValue* value = find(key);
  if (value == nullptr) throw error(where, "missing, expected an integer");
  if (value->is_array) throw error(where, "is " + describe(*value) + ", expected an integer");
  const GgufScalar number = scalar(*value);
  if (const auto* integer = std::get_if<int64_t>(&number)) return *integer;
  if (const auto* integer = std::get_if<uint64_t>(&number); integer != nullptr && std::in_range<int64_t>(*integer)) {
    return static_cast<int64_t>(*integer);
  }
  throw error(where, "is " + describe(*value) + ", expected an integer below 2^63");
}

GgufPart read_gguf_part(File file) {
  GgufPart part{std::move(file), {}, {}, {}};
  HeaderCursor in(part.file);
  read_preamble(in);
  const uint64_t tensors = read_count(in, "tensors", kLeastTensorEntry);
  const uint64_t keys = read_count(in, "keys", kLeastKeyEntry);
  for (uint64_t i = 0; i < keys; ++i) {
    in.where = "key " + std::to_string(i + 1) + " of " + std::to_string(keys);
    part.values.push_back(read_value(in));
    if (!part.index.emplace(part.values.back().key, i).second) in.fail("appears twice, expected once");
  }
  for (uint64_t i = 0; i < tensors; ++i) {
    in.where = "tensor " + std::to_string(i + 1) + " of " + std::to_string(tensors);
    part.tensors.push_back(read_tensor(in));
  }
  place_tensors(part, in.offset());
  return part;
}

}  // namespace cpuinfer
