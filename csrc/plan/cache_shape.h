// Where keys and values lie in a page of the cache.
#pragma once

#include <cstdint>

#include "core/rounding.h"
#include "kernels/kernels.h"

namespace cpuinfer {

// A page holds kPageTokens positions: for each layer and key-value head, fp16 K [head_dim][kPageTokens] (transposed, so
// that a vector's lanes are positions) and then fp16 V [kPageTokens][head_dim rounded up to 16].
struct CacheShape {
  int64_t layers = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;

  int64_t padded_dim() const noexcept { return round_up(head_dim, kLanes); }
  int64_t head_elements() const noexcept { return kPageTokens * (head_dim + padded_dim()); }
  int64_t page_elements() const noexcept { return layers * kv_heads * head_elements(); }
  int64_t page_bytes() const noexcept { return page_elements() * static_cast<int64_t>(sizeof(uint16_t)); }
  // Elements from the start of a page to K and to V of a layer's head.
  int64_t k_offset(int64_t layer, int64_t head) const noexcept { return (layer * kv_heads + head) * head_elements(); }
  int64_t v_offset(int64_t layer, int64_t head) const noexcept {
    return k_offset(layer, head) + kPageTokens * head_dim;
  }
};

}  // namespace cpuinfer
