// A read-only regular file, opened once and read at given positions into the caller's memory.
//
// Files are not memory-mapped.  Packing copies every byte exactly once anyway, so pread keeps resident memory flat (the
// page cache is not this process's memory), and a file that shrinks or fails under us is a short read, hence an Error
// that names the place, where a mapping would end the process with SIGBUS.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

namespace cpuinfer {

class File {
 public:
  // Throws Error(kCheckpoint) for a path that cannot be opened or is a directory, FIFO, socket or device.
  explicit File(std::string path);

  const std::string& path() const noexcept { return path_; }
  const std::string& label() const noexcept { return label_; }  // the path, fit for a message
  uint64_t size() const noexcept { return size_; }              // when it was opened

  // Bytes [offset, offset + bytes) into `out`; all of them, or Error(kCheckpoint).  Safe from several threads.
  void read(uint64_t offset, void* out, std::size_t bytes) const;

 private:
  class Descriptor {
   public:
    explicit Descriptor(int fd) noexcept : fd_(fd) {}
    Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    Descriptor& operator=(Descriptor&& other) noexcept {
      std::swap(fd_, other.fd_);
      return *this;
    }
    ~Descriptor();
    int get() const noexcept { return fd_; }

   private:
    int fd_;
  };

  std::string path_;
  std::string label_;
  Descriptor descriptor_;
  uint64_t size_ = 0;
};

}  // namespace cpuinfer
