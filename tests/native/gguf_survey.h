// Opens bytes as a GGUF file and reads everything the reader offers; shared by the native test and the fuzz target.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/gguf.h"

// A file in memory, with a path for as long as it lives.
class MemoryFile {
 public:
  explicit MemoryFile(std::string_view content) : fd_(::memfd_create("gguf", MFD_CLOEXEC)) { write(content); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  ~MemoryFile() { ::close(fd_); }

  void write(std::string_view content) const {
    truncate(0);
    if (::pwrite(fd_, content.data(), content.size(), 0) != static_cast<ssize_t>(content.size())) std::abort();
  }
  void truncate(uint64_t size) const {
    if (::ftruncate(fd_, static_cast<off_t>(size)) != 0) std::abort();
  }
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }

 private:
  int fd_;
};

inline void read_everything(const cpuinfer::Gguf& gguf) {
  for (const cpuinfer::GgufValue& value : gguf.head().values) {
    if (value.type == cpuinfer::GgufType::kString) {
      gguf.read_strings(value, [](uint64_t, std::string_view) {});
    } else {
      std::vector<uint8_t> raw(value.bytes);
      gguf.read_numbers(value, raw.data());
      if (!value.is_array) gguf.head().scalar(value);
    }
  }
  for (const cpuinfer::GgufTensor* tensor : gguf.tensors()) {
    std::vector<uint8_t> raw(tensor->bytes);
    gguf.read_rows(tensor->name, 0, static_cast<int64_t>(tensor->rows), raw.data(), raw.size());
  }
}

// Whether the bytes are a sound file.  Any exception but Error(kCheckpoint) passes through.
inline bool survey(std::string_view content) {
  const MemoryFile file(content);
  try {
    read_everything(cpuinfer::Gguf(file.path()));
    return true;
  } catch (const cpuinfer::Error& error) {
    if (error.fault() != cpuinfer::Fault::kCheckpoint) throw;
    return false;
  }
}
