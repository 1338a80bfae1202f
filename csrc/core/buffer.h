// The one owner of native memory: a cache-line aligned, zero-filled, move-only block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace cpuinfer {

constexpr std::size_t kCacheLine = 64;

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    if (bytes > SIZE_MAX - kCacheLine) throw std::bad_alloc();
    data_.reset(std::aligned_alloc(kCacheLine, (bytes + kCacheLine - 1) / kCacheLine * kCacheLine));
    if (!data_) throw std::bad_alloc();
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
