// Opening and positioned reading of regular files with POSIX calls.
#include "core/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "core/error.h"
#include "core/text.h"

namespace cpuinfer {

static_assert(sizeof(off_t) == 8, "files larger than 2 GiB need a 64-bit off_t");

namespace {

std::string reason(int code) { return std::generic_category().message(code); }

// O_NONBLOCK: opening a FIFO nobody writes to would wait for ever; for a regular file it means nothing.
int open_for_reading(const std::string& path, const std::string& label) {
  if (path.find('\0') != std::string::npos) {
    throw Error(Fault::kCheckpoint, label + ": the path holds a NUL byte, expected the path of a file");
  }
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd < 0) throw Error(Fault::kCheckpoint, label + ": cannot be opened: " + reason(errno));
  return fd;
}

const char* kind_name(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a FIFO";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

}  // namespace

File::Descriptor::~Descriptor() {
  if (fd_ >= 0) ::close(fd_);
}

File::File(std::string path)
    : path_(std::move(path)),
      label_(printable(path_, std::string::npos)),
      descriptor_(open_for_reading(path_, label_)) {
  struct stat status{};
  if (::fstat(descriptor_.get(), &status) != 0) {
    throw Error(Fault::kCheckpoint, label_ + ": its size cannot be read: " + reason(errno));
  }
  if (!S_ISREG(status.st_mode)) {
    throw Error(Fault::kCheckpoint, label_ + ": is " + kind_name(status.st_mode) + ", expected a regular file");
  }
  size_ = static_cast<uint64_t>(status.st_size);
}

void File::read(uint64_t offset, void* out, std::size_t bytes) const {
  constexpr std::size_t kMostPerCall = std::size_t{1} << 30;  // Linux transfers at most 0x7ffff000 bytes a call
  const std::string place = label_ + ": offset " + std::to_string(offset) + ": ";
  if (offset > size_ || bytes > size_ - offset) {
    throw Error(Fault::kCheckpoint, place + "expected " + std::to_string(bytes) + " bytes, but the file has " +
                                        std::to_string(size_) + " in all");
  }
  std::size_t done = 0;
  while (done < bytes) {
    const ssize_t got = ::pread(descriptor_.get(), static_cast<char*>(out) + done, std::min(bytes - done, kMostPerCall),
                                static_cast<off_t>(offset + done));
    if (got > 0) {
      done += static_cast<std::size_t>(got);
    } else if (got == 0) {
      throw Error(Fault::kCheckpoint, place + "expected " + std::to_string(bytes) + " bytes, found " +
                                          std::to_string(done) + ": the file shrank from " + std::to_string(size_) +
                                          " bytes to " + std::to_string(offset + done) + " while in use");
    } else if (errno != EINTR) {
      throw Error(Fault::kCheckpoint, place + "expected " + std::to_string(bytes) + " bytes, found " +
                                          std::to_string(done) + ": " + reason(errno));
    }
  }
}

}  // namespace cpuinfer
