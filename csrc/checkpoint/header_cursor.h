// Walks the header of a checkpoint file through a window of bounded size, checking every step against the file's end.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/file.h"
#include "core/text.h"

namespace cpuinfer {

class HeaderCursor {
 public:
  // A real header has about 10 MB; the bound limits the time a hostile one can take.
  static constexpr uint64_t kMostHeaderBytes = uint64_t{1} << 30;
  static constexpr uint64_t kMostNameBytes = 65535;  // GGUF's own bound on keys
  static constexpr uint64_t kWindowBytes = uint64_t{1} << 20;
  static_assert(kWindowBytes > kMostNameBytes, "a name is taken from one window");

  explicit HeaderCursor(const File& file)
      : file_(file), end_(std::min(file.size(), kMostHeaderBytes)), window_(std::min(end_, kWindowBytes)) {}

  std::string where = "header";  // what is being read, for messages

  uint64_t offset() const noexcept { return offset_; }
  uint64_t remaining() const noexcept { return end_ - offset_; }

  [[noreturn]] void fail(const std::string& text) const {
    throw Error(Fault::kCheckpoint, file_.label() + ": " + where + ": " + text);
  }

  template <typename T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof(T)), sizeof(T));
    return value;
  }

  void skip(uint64_t bytes) {
    need(bytes);
    offset_ += bytes;
  }

  // A key or a tensor's name: a length and that many bytes of UTF-8.
  std::string name() {
    const auto length = number<uint64_t>();
    if (length == 0) fail("its name is empty");
    if (length > kMostNameBytes) {
      fail("its name has " + std::to_string(length) + " bytes, expected at most " + std::to_string(kMostNameBytes));
    }
    std::string text(take(length), length);
    if (!is_utf8(text)) fail("its name '" + printable(text) + "' is not UTF-8");
    return text;
  }

 private:
  void need(uint64_t bytes) const {
    if (bytes <= remaining()) return;
    if (end_ < file_.size()) fail("the header is longer than " + std::to_string(end_) + " bytes, the most accepted");
    fail("needs " + std::to_string(bytes) + " bytes at offset " + std::to_string(offset_) + ", but the file ends at " +
         std::to_string(end_));
  }

  // The next `bytes`, at most a window, valid until the next call.
  const char* take(uint64_t bytes) {
    need(bytes);
    if (offset_ + bytes > window_offset_ + window_used_) {
      window_offset_ = offset_;
      window_used_ = std::min<uint64_t>(window_.size(), remaining());
      file_.read(window_offset_, window_.data(), window_used_);
    }
    const char* found = window_.data() + (offset_ - window_offset_);
    offset_ += bytes;
    return found;
  }

  const File& file_;
  uint64_t end_;
  uint64_t offset_ = 0;
  std::vector<char> window_;
  uint64_t window_offset_ = 0;
  uint64_t window_used_ = 0;
};

}  // namespace cpuinfer
