// Where each value lies in a plan's one block of memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/buffer.h"
#include "core/rounding.h"

namespace cpuinfer {

constexpr int64_t kFloatsPerLine = static_cast<int64_t>(kCacheLine / sizeof(float));

// Hands out ranges of the arena; a range given back is used again (first fit).
class ArenaLayout {
 public:
  int64_t take(int64_t floats) {
    floats = round_up(std::max<int64_t>(floats, 1), kFloatsPerLine);
    for (auto it = free_.begin(); it != free_.end(); ++it) {
      if (it->floats < floats) continue;
      const int64_t offset = it->offset;
      it->offset += floats;
      it->floats -= floats;
      if (it->floats == 0) free_.erase(it);
      return offset;
    }
    const int64_t offset = end_;
    end_ += floats;
    return offset;
  }
  void give_back(int64_t offset, int64_t floats) {
    floats = round_up(std::max<int64_t>(floats, 1), kFloatsPerLine);
    auto it = std::find_if(free_.begin(), free_.end(), [&](const Range& r) { return r.offset > offset; });
    it = free_.insert(it, {offset, floats});
    if (it + 1 != free_.end() && it->offset + it->floats == (it + 1)->offset) {
      it->floats += (it + 1)->floats;
      free_.erase(it + 1);
    }
    if (it != free_.begin() && (it - 1)->offset + (it - 1)->floats == it->offset) {
      (it - 1)->floats += it->floats;
      free_.erase(it);
    }
  }
  int64_t end() const { return end_; }

 private:
  struct Range {
    int64_t offset, floats;
  };
  std::vector<Range> free_;
  int64_t end_ = 0;
};

}  // namespace cpuinfer
