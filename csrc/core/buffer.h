// The owners of native memory: a cache-line aligned, zero-filled, move-only block, and a pool that many share.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>

#include "core/error.h"

namespace cpuinfer {

constexpr std::size_t kCacheLine = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    if (bytes >= kHugePage) {
      map();
      return;
    }
    void* block = nullptr;
    if (posix_memalign(&block, kCacheLine, bytes) != 0) throw std::bad_alloc();
    data_.reset(block, [](void* p) { std::free(p); });
    std::memset(block, 0, bytes);
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
  friend class BufferPool;

  // Pages of its own, which the system clears when they are first written: by as many threads as write.
  void map() {
    if (bytes_ > SIZE_MAX - kHugePage) throw std::bad_alloc();
    const std::size_t mapped = bytes_ + kHugePage;  // enough to begin at a huge page
    void* block = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) throw std::bad_alloc();
    const std::size_t skipped = (kHugePage - reinterpret_cast<std::uintptr_t>(block) % kHugePage) % kHugePage;
    void* begin = static_cast<std::byte*>(block) + skipped;
    data_.reset(begin, [block, mapped](void*) { munmap(block, mapped); });  // which unmaps also if it throws
    // Streaming from huge pages is faster by half.  Only whole ones, so that no more memory becomes resident; where the
    // system declines, small pages serve.
    madvise(begin, bytes_ / kHugePage * kHugePage, MADV_HUGEPAGE);
  }

  std::shared_ptr<void> data_;
  std::size_t bytes_ = 0;
};

// One block cut into buffers, which keep it alive: many small ones then lie on huge pages, and can be read and written
// as a whole.  Not for several threads.
class BufferPool {
 public:
  explicit BufferPool(std::size_t bytes) : block_(bytes) {}

  std::size_t bytes() const noexcept { return block_.bytes(); }
  void* data() noexcept { return block_.as<void>(); }

  // The next part of the block, from a cache line on.
  Buffer take(std::size_t bytes) {
    if (bytes > block_.bytes() - used_) {
      throw Error(Fault::kInvalid, "a pool of " + std::to_string(block_.bytes()) + " bytes, of which " +
                                       std::to_string(used_) + " are taken, asked for " + std::to_string(bytes) +
                                       " more");
    }
    Buffer part;
    part.data_ = std::shared_ptr<void>(block_.data_, block_.as<std::byte>() + used_);
    part.bytes_ = bytes;
    used_ = std::min(block_.bytes(), used_ + (bytes + kCacheLine - 1) / kCacheLine * kCacheLine);
    return part;
  }

 private:
  Buffer block_;
  std::size_t used_ = 0;
};

}  // namespace cpuinfer
