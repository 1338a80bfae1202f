// UTF-8 validation and the escaping of arbitrary bytes for messages.
#include "core/text.h"

#include <cstdint>

namespace cpuinfer {

namespace {

// Bytes of the well-formed character that `s` starts with, or 0.  `s` is not empty.
std::size_t character_length(std::string_view s) noexcept {
  const auto byte = [&](std::size_t i) { return static_cast<uint8_t>(s[i]); };
  const uint8_t first = byte(0);
  if (first < 0x80) return 1;
  const std::size_t length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || s.size() < length) return 0;
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  const uint8_t second = byte(1);
  if (first == 0xE0 && second < 0xA0) return 0;  // overlong
  if (first == 0xED && second > 0x9F) return 0;  // surrogate
  if (first == 0xF0 && second < 0x90) return 0;  // overlong
  if (first == 0xF4 && second > 0x8F) return 0;  // past U+10FFFF
  return length;
}

}  // namespace

bool is_utf8(std::string_view bytes) noexcept {
  while (!bytes.empty()) {
    const std::size_t length = character_length(bytes);
    if (length == 0) return false;
    bytes.remove_prefix(length);
  }
  return true;
}

std::string printable(std::string_view bytes, std::size_t limit) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string text;
  for (std::size_t i = 0; i < bytes.size();) {
    if (i >= limit) return text + "...";
    const std::size_t length = character_length(bytes.substr(i));
    const auto first = static_cast<uint8_t>(bytes[i]);
    // C0 and C1 controls and DEL; C1 is U+0080 .. U+009F, encoded C2 80 .. C2 9F.
    const bool control =
        first < 0x20 || first == 0x7F || (length == 2 && first == 0xC2 && static_cast<uint8_t>(bytes[i + 1]) < 0xA0);
    if (length == 0 || control) {
      text += {'\\', 'x', kHex[first >> 4], kHex[first & 15]};
      i += 1;
      if (control && length == 2) {
        const auto second = static_cast<uint8_t>(bytes[i++]);
        text += {'\\', 'x', kHex[second >> 4], kHex[second & 15]};
      }
    } else {
      text += bytes.substr(i, length);
      i += length;
    }
  }
  return text;
}

}  // namespace cpuinfer
