// Attention: rotary tables, keys and values into the cache, queries against it.
#include <algorithm>
#include <cmath>

#include "core/rounding.h"
#include "plan/plan.h"

namespace cpuinfer {

void Plan::rotate_tables(int64_t row) noexcept {
  for (std::size_t i = 0; i < ropes_.size(); ++i) {
    const Rope& rope = program_.ropes()[i];
    const auto pairs = static_cast<int64_t>(rope.inverse_frequency.size());
    float *cosine = at(ropes_[i].cosine) + row * pairs, *sine = at(ropes_[i].sine) + row * pairs;
    for (const double frequency : rope.inverse_frequency) {
      const double angle = static_cast<double>(step_.positions[row]) * frequency;
      *cosine++ = static_cast<float>(rope.magnitude * std::cos(angle));
      *sine++ = static_cast<float>(rope.magnitude * std::sin(angle));
    }
  }
}

// Of one key-value head, whose queries are rotated too.
void Plan::store_key_and_value(const Op& op, int64_t row, int64_t position, uint16_t* const* pages,
                               int64_t head) noexcept {
  const AttentionShape& shape = op.attention;
  const auto rotate = [&](ValueId id, int64_t first, int64_t heads) {
    float* x = row_of(id, row) + first * shape.head_dim;
    if (shape.rope < 0) return x;
    const auto index = static_cast<std::size_t>(shape.rope);
    const Rope& rope = program_.ropes()[index];
    const auto pairs = static_cast<int64_t>(rope.inverse_frequency.size());
    for (int64_t i = 0; i < heads; ++i) {
      kernels_.rope(x + i * shape.head_dim, at(ropes_[index].cosine) + row * pairs,
                    at(ropes_[index].sine) + row * pairs, pairs, rope.interleaved);
    }
    return x;
  };
  const int64_t group = shape.heads / shape.kv_heads;
  rotate(op.inputs[0], head * group, group);
  const float* k = rotate(op.inputs[1], head, 1);
  const float* v = row_of(op.inputs[2], row) + head * shape.head_dim;
  uint16_t* page = pages[position / kPageTokens];
  const int64_t slot = position % kPageTokens;
  constexpr int64_t kPiece = 64;  // of a key, converted at once
  uint16_t half[kPiece];
  uint16_t* keys = page + cache_.k_offset(shape.layer, head);
  for (int64_t d = 0; d < shape.head_dim; d += kPiece) {
    const int64_t count = std::min(kPiece, shape.head_dim - d);
    kernels_.to_half(k + d, count, half);
    for (int64_t i = 0; i < count; ++i) keys[(d + i) * kPageTokens + slot] = half[i];
  }
  kernels_.to_half(v, shape.head_dim, page + cache_.v_offset(shape.layer, head) + slot * cache_.padded_dim());
}

void Plan::run_attention(const Op& op, int worker) noexcept {
  const auto blocks = static_cast<int64_t>(blocks_.size());
  const int64_t kv_heads = op.attention.kv_heads, group = op.attention.heads / kv_heads;
  const auto store = [&](int64_t item) {
    const RowBlock& b = blocks_[static_cast<std::size_t>(item / kv_heads)];
    for (int64_t r = 0; r < b.rows; ++r) store_key_and_value(op, b.row + r, b.position + r, b.pages, item % kv_heads);
  };
  if (brief_) {
    phases_.run(worker, blocks * kv_heads, [&](int64_t item) {
      store(item);
      attend_block(op, item / kv_heads, item % kv_heads, item % kv_heads * group, group, worker);
    });
    return;
  }
  phases_.run(worker, blocks * kv_heads, store);
  if (!tile_queries_.empty()) attend_tiles(op, worker);
  const auto tiled = static_cast<int64_t>(tiled_blocks_);
  if (tiled == blocks) return;
  const int64_t splits = ceil_div(group, head_chunk_);
  const int64_t heads = kv_heads * splits;
  phases_.run(worker, (blocks - tiled) * heads, [&](int64_t item) {
    const int64_t kv_head = item % heads / splits;
    const int64_t first = item % splits * head_chunk_, block = tiled + item / heads;
    attend_block(op, block, kv_head, kv_head * group + first, std::min(head_chunk_, group - first), worker);
  });
}

void Plan::attend_block(const Op& op, int64_t block, int64_t kv_head, int64_t first_head, int64_t head_count,
                        int worker) noexcept {
  const RowBlock& b = blocks_[static_cast<std::size_t>(block)];
  const AttentionShape& shape = op.attention;
  Attend a{};
  for (int64_t r = 0; r < b.rows; ++r) {
    const int64_t limit = b.position + r + 1;
    for (int64_t head = first_head; head < first_head + head_count; ++head, ++a.rows) {
      a.q[a.rows] = row_of(op.inputs[0], b.row + r) + head * shape.head_dim;
      a.out[a.rows] = row_of(op.outputs[0], b.row + r) + head * shape.head_dim;
      a.begin[a.rows] = shape.window > 0 ? std::max<int64_t>(0, limit - shape.window) : 0;
      a.limit[a.rows] = limit;
      a.slope[a.rows] = shape.slopes.empty() ? 0.0f : shape.slopes[static_cast<std::size_t>(head)];
    }
  }
  a.pages = b.pages;
  a.k_offset = cache_.k_offset(shape.layer, kv_head);
  a.v_offset = cache_.v_offset(shape.layer, kv_head);
  a.head_dim = shape.head_dim;
  a.scale = shape.scale;
  a.softcap = shape.softcap;
  a.scores = at(own(worker).scores);
  a.scores_stride = round_up(limits_.context, kLanes);
  kernels_.attend(a);
}

}  // namespace cpuinfer
