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
void Plan::store_key_and_value(const Op& op, int64_t row, int64_t position, uint8_t* const* pages, int64_t head,
                               int worker) noexcept {
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
  Keep keep{};
  keep.cache = cache_.type;
  keep.place = cache_.place(shape.layer, head);
  keep.page = pages[position / kPageTokens];
  keep.slot = position % kPageTokens;
  keep.k = rotate(op.inputs[1], head, 1);
  keep.v = row_of(op.inputs[2], row) + head * shape.head_dim;
  keep.head_dim = shape.head_dim;
  keep.scratch = at(own(worker).attend);
  kernels_.keep(keep);
}

void Plan::run_attention(const Op& op, int worker) noexcept {
  const auto blocks = static_cast<int64_t>(blocks_.size());
  const int64_t kv_heads = op.attention.kv_heads, group = op.attention.heads / kv_heads;
  const auto store = [&](int64_t item) {
    const RowBlock& b = blocks_[static_cast<std::size_t>(item / kv_heads)];
    for (int64_t r = 0; r < b.rows; ++r) {
      store_key_and_value(op, b.row + r, b.position + r, b.pages, item % kv_heads, worker);
    }
  };
  if (brief_) {
    phases_.run(worker, blocks * kv_heads, [&](int64_t item) {
      store(item);
      attend_block(op, item / kv_heads, {item % kv_heads, item % kv_heads * group, group}, worker);
    });
    return;
  }
  phases_.run(worker, blocks * kv_heads, store);
  if (!tile_queries_.empty()) attend_tiles(op, worker);
  const int64_t tiled = tiled_blocks_;
  if (tiled == blocks) return;
  if (segments_ > 0) return attend_segments(op, worker);
  const int64_t splits = ceil_div(group, head_chunk_);
  const int64_t heads = kv_heads * splits;
  phases_.run(worker, (blocks - tiled) * heads, [&](int64_t item) {
    const int64_t kv_head = item % heads / splits;
    const int64_t first = item % splits * head_chunk_;
    attend_block(op, tiled + item / heads, {kv_head, kv_head * group + first, std::min(head_chunk_, group - first)},
                 worker);
  });
}

// Fewer blocks and heads than would keep all workers busy: they share out segments too, and merge them after.
void Plan::attend_segments(const Op& op, int worker) noexcept {
  const int64_t blocks = static_cast<int64_t>(blocks_.size()) - tiled_blocks_;
  const int64_t kv_heads = op.attention.kv_heads, group = op.attention.heads / kv_heads;
  const int64_t chunk = std::min<int64_t>(group, kTileRows), splits = ceil_div(group, chunk);
  const int64_t heads = kv_heads * splits;
  phases_.run(worker, blocks * heads * segments_, [&](int64_t item) {
    const int64_t segment = item % segments_, head = item / segments_ % heads, block = item / segments_ / heads;
    const RowBlock& b = blocks_[static_cast<std::size_t>(tiled_blocks_ + block)];
    const int64_t kv_head = head / splits, first = head % splits * chunk;
    Attend a = attend_task(op, b, {kv_head, kv_head * group + first, std::min(chunk, group - first)}, worker);
    if (a.begin[0] / kSegment > segment || b.position + b.rows <= segment * kSegment) return;
    for (int r = 0; r < a.rows; ++r) {
      const int64_t row = r / std::min(chunk, group - first), query_head = kv_head * group + first + r % chunk;
      a.part[r] = part_at(block, row, query_head, segment);
    }
    a.segment = segment;
    kernels_.attend(a);
  });
  phases_.run(worker, blocks * op.attention.heads,
              [&](int64_t item) { merge_segments(op, item / op.attention.heads, item % op.attention.heads, worker); });
}

void Plan::merge_segments(const Op& op, int64_t block, int64_t head, int worker) noexcept {
  const RowBlock& b = blocks_[static_cast<std::size_t>(tiled_blocks_ + block)];
  for (int64_t r = 0; r < b.rows; ++r) {
    const int64_t limit = b.position + r + 1, first = first_seen(op, limit) / kSegment;
    MergeParts merge{};
    merge.parts = part_at(block, r, head, first);
    merge.count = ceil_div(limit, kSegment) - first;
    merge.stride = attend_part_floats(op.attention.head_dim);
    merge.head_dim = op.attention.head_dim;
    merge.out = row_of(op.outputs[0], b.row + r) + head * op.attention.head_dim;
    merge.scratch = at(own(worker).attend);
    kernels_.merge(merge);
  }
}

// The part of a segment of a block's row; blocks counted without the tiled ones.
float* Plan::part_at(int64_t block, int64_t row, int64_t head, int64_t segment) noexcept {
  const int64_t query = (block * block_rows() + row) * attention_.heads + head;
  return at(parts_) + (query * ceil_div(limits_.context, kSegment) + segment) * attend_part_floats(attention_.head_dim);
}

// Blocks whose heads alone would not keep all workers busy.
int64_t Plan::most_shared_blocks() const noexcept {
  if (team_.size() == 1 || limits_.context <= kSegment) return 0;
  return std::min(limits_.rows, (kSharedItems * team_.size() - 1) / attention_.kv_heads);
}

int64_t Plan::first_seen(const Op& op, int64_t limit) const noexcept {
  return op.attention.window > 0 ? std::max<int64_t>(0, limit - op.attention.window) : 0;
}

void Plan::attend_block(const Op& op, int64_t block, const HeadRange& heads, int worker) noexcept {
  kernels_.attend(attend_task(op, blocks_[static_cast<std::size_t>(block)], heads, worker));
}

Attend Plan::attend_task(const Op& op, const RowBlock& b, const HeadRange& heads, int worker) noexcept {
  const AttentionShape& shape = op.attention;
  Attend a{};
  for (int64_t r = 0; r < b.rows; ++r) {
    const int64_t limit = b.position + r + 1;
    for (int64_t head = heads.first; head < heads.first + heads.count; ++head, ++a.rows) {
      a.q[a.rows] = row_of(op.inputs[0], b.row + r) + head * shape.head_dim;
      a.out[a.rows] = row_of(op.outputs[0], b.row + r) + head * shape.head_dim;
      a.begin[a.rows] = first_seen(op, limit);
      a.limit[a.rows] = limit;
      a.slope[a.rows] = shape.slopes.empty() ? 0.0f : shape.slopes[static_cast<std::size_t>(head)];
    }
  }
  a.pages = b.pages;
  a.cache = cache_.type;
  a.place = cache_.place(shape.layer, heads.kv_head);
  a.head_dim = shape.head_dim;
  a.scale = shape.scale;
  a.softcap = shape.softcap;
  a.scratch = at(own(worker).attend);
  return a;
}

}  // namespace cpuinfer
