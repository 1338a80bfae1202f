// Pages are allocated when first needed and kept for the next sequence.
#include "runtime/kv_cache.h"

#include <new>
#include <string>

#include "core/error.h"

namespace cpuinfer {

uint16_t* KvCache::take() {
  if (used_ >= limit_) {
    throw Error(Fault::kMemory, "key-value cache: all " + std::to_string(limit_) + " pages of " +
                                    std::to_string(kPageTokens) + " tokens are in use");
  }
  if (free_.empty()) {
    try {
      owned_.reserve(owned_.size() + 1);
      free_.reserve(owned_.size() + 1);  // so that give_back never allocates
      owned_.push_back(std::make_unique<Buffer>(static_cast<std::size_t>(shape_.page_bytes())));
    } catch (const std::bad_alloc&) {
      throw Error(Fault::kMemory, "key-value cache: the system has no memory for another page of " +
                                      std::to_string(shape_.page_bytes()) + " bytes");
    }
    free_.push_back(owned_.back()->as<uint16_t>());
  }
  uint16_t* page = free_.back();
  free_.pop_back();
  ++used_;
  return page;
}

void KvCache::give_back(uint16_t* page) noexcept {
  free_.push_back(page);
  --used_;
}

}  // namespace cpuinfer
