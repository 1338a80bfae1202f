// Text that comes from files: whether it is UTF-8, and how to show any bytes in a one-line message.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace cpuinfer {

// Well-formed as the Unicode standard's table 3-7 has it: no overlong forms, no surrogates, nothing past U+10FFFF.
bool is_utf8(std::string_view bytes) noexcept;

// At most `limit` bytes of `bytes` (then "..."), with control characters and invalid UTF-8 written as \xNN: messages
// become Python strings, so they must be UTF-8, and one hostile name must not fill or repaint a terminal.
std::string printable(std::string_view bytes, std::size_t limit = 100);

}  // namespace cpuinfer
