// The key-value cache: pages of kPageTokens positions for all layers, handed to sequences and taken back.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/buffer.h"
#include "plan/cache_shape.h"

namespace cpuinfer {

class KvCache {
 public:
  // limit: the most pages ever held at once.
  KvCache(CacheShape shape, int64_t limit) : shape_(shape), limit_(limit) {}

  const CacheShape& shape() const noexcept { return shape_; }
  int64_t used() const noexcept { return used_; }
  // A page of unspecified content.  Throws Error(kMemory) past the limit or when the system has no memory.
  uint16_t* take();
  void give_back(uint16_t* page) noexcept;

 private:
  CacheShape shape_;
  int64_t limit_;
  int64_t used_ = 0;
  std::vector<std::unique_ptr<Buffer>> owned_;
  std::vector<uint16_t*> free_;
};

}  // namespace cpuinfer
