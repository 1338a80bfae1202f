// Where keys and values lie in a page of the cache.
#pragma once

#include <cstdint>

#include "core/rounding.h"
#include "kernels/kernels.h"

namespace cpuinfer {

// A page holds kPageTokens positions: for each layer and key-value head its keys, their scales, its values and theirs,
// one behind the other, as HeadPlace says for the type.
struct CacheShape {
  int64_t layers = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  CacheType type = CacheType::kF16;

  int64_t key_bytes() const noexcept {
    return type == CacheType::kF16 ? kPageTokens * head_dim * kHalfBytes : code_bytes();
  }
  int64_t value_bytes() const noexcept {
    return type == CacheType::kF16 ? kPageTokens * round_up(head_dim, kLanes) * kHalfBytes : code_bytes();
  }
  int64_t scale_bytes() const noexcept {
    return type == CacheType::kF16 ? 0 : kPageTokens * ceil_div(head_dim, kGroup) * kHalfBytes;
  }
  int64_t head_bytes() const noexcept { return key_bytes() + value_bytes() + 2 * scale_bytes(); }
  int64_t page_bytes() const noexcept { return layers * kv_heads * head_bytes(); }
  HeadPlace place(int64_t layer, int64_t head) const noexcept {
    const int64_t k = (layer * kv_heads + head) * head_bytes(), v = k + key_bytes() + scale_bytes();
    return {k, k + key_bytes(), v, v + value_bytes()};
  }

 private:
  static constexpr int64_t kHalfBytes = 2;
  int64_t code_bytes() const noexcept {
    return kPageTokens * round_up(head_dim, kGroup) / (type == CacheType::kInt4 ? 2 : 1);
  }
};

}  // namespace cpuinfer
