// A message is its fields, each a key (number * 8 + wire type) and a value; a text or a message begins with its length.
#include "tokenizer/pieces.h"

#include <bit>
#include <cstddef>

namespace cpuinfer {
namespace {

constexpr uint8_t kText = 1 << 3 | 2, kScore = 2 << 3 | 5, kType = 3 << 3;
constexpr uint32_t kNormal = 1;  // the type of a piece that has none written down

std::size_t varint_bytes(uint64_t value) noexcept { return value < 128 ? 1 : 1 + varint_bytes(value >> 7); }

void append_varint(std::string& out, uint64_t value) {
  for (; value > 127; value >>= 7) out.push_back(static_cast<char>((value & 127) | 128));
  out.push_back(static_cast<char>(value));
}

}  // namespace

void append_piece(std::string& out, std::string_view text, float score, uint32_t type) {
  const std::size_t type_bytes = type == kNormal ? 0 : 1 + varint_bytes(type);
  const std::size_t bytes = 1 + varint_bytes(text.size()) + text.size() + 1 + sizeof score + type_bytes;
  out.push_back(static_cast<char>(kText));  // a piece is field 1 of the model, as its text is of the piece
  append_varint(out, bytes);
  out.push_back(static_cast<char>(kText));
  append_varint(out, text.size());
  out.append(text);
  out.push_back(static_cast<char>(kScore));
  for (uint32_t bits = std::bit_cast<uint32_t>(score), i = 0; i < 4; ++i, bits >>= 8) {
    out.push_back(static_cast<char>(bits & 255));
  }
  if (type != kNormal) {
    out.push_back(static_cast<char>(kType));
    append_varint(out, type);
  }
}

}  // namespace cpuinfer
