// What each kind of op does with the rows of a step, split among the workers.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/rounding.h"
#include "plan/plan.h"

namespace cpuinfer {

void Plan::run_op(std::size_t index, int worker) noexcept {
  const Op& op = program_.ops()[index];
  switch (op.kind) {
    case OpKind::kEmbed: return run_embed(op, worker);
    case OpKind::kLinears:
    case OpKind::kGlu: return run_linear_op(op, index, nullptr, step_.rows, nullptr, worker);
    case OpKind::kAttention: return run_attention(op, index, worker);
  }
}

void Plan::rotate_tables(int worker) noexcept {
  const std::vector<double>& frequency = program_.rope().inverse_frequency;
  const int64_t pairs = static_cast<int64_t>(frequency.size());
  for (int64_t row = worker; row < step_.rows; row += team_.size()) {
    for (int64_t i = 0; i < pairs; ++i) {
      const double angle = static_cast<double>(step_.positions[row]) * frequency[static_cast<std::size_t>(i)];
      at(cosine_)[row * pairs + i] = static_cast<float>(std::cos(angle));
      at(sine_)[row * pairs + i] = static_cast<float>(std::sin(angle));
    }
  }
}

void Plan::run_embed(const Op& op, int worker) noexcept {
  const ValueId out = op.outputs[0];
  for (int64_t row = worker; row < step_.rows; row += team_.size()) {
    op.weights[0]->read_row(step_.tokens[row], mutable_value(out) + row * padded_width(out));
  }
}

QuantizedRows Plan::quantized_tile(const Input& in, int64_t k, int64_t row, int rows) const noexcept {
  return {rows, in.codes + row * k, in.scale + row * (k / kGroup), in.sum + row * (k / kHalf)};
}

// Reads one tile of an op's input: normalised into `normed` when there is a norm, quantised when the weights ask for
// it. The tile's codes start code_offset rows into in.codes.
void Plan::read_tile(const Op& op, const int32_t* row_map, int64_t row, int rows, const Input& in, int64_t code_offset,
                     float* normed, int64_t normed_stride) noexcept {
  const ValueId x = op.inputs[0];
  const int64_t k = op.weights[0]->view().k;
  const int64_t stride = padded_width(x);
  const float* source = mutable_value(x) + row * stride;
  int64_t source_stride = stride;
  if (!op.norm.weight.empty() || row_map != nullptr) {
    for (int r = 0; r < rows; ++r) {
      const float* from = mutable_value(x) + (row_map != nullptr ? row_map[row + r] : row + r) * stride;
      if (op.norm.weight.empty()) {
        std::memcpy(normed + r * normed_stride, from, static_cast<std::size_t>(k) * sizeof(float));
      } else {
        kernels_.rms_norm(from, op.norm.weight.data(), k, op.norm.eps, normed + r * normed_stride);
      }
    }
    source = normed;
    source_stride = normed_stride;
  }
  if (in.codes != nullptr) kernels_.quantize(source, source_stride, k, quantized_tile(in, k, code_offset, rows));
}

Plan::Input Plan::read_input(const Op& op, std::size_t index, const int32_t* row_map, int64_t rows,
                             int worker) noexcept {
  const int64_t k = op.weights[0]->view().k;
  const int64_t stride = round_up(k, kLanes);
  bool any_integer = false, any_float = false;
  for (const auto& weight : op.weights) {
    (is_float(weight->view().encoding) ? any_float : any_integer) = true;
  }
  const bool moved = !op.norm.weight.empty() || row_map != nullptr;  // the floats the kernels see are not x itself
  const auto quantized = [&](int64_t codes, int64_t scale, int64_t sum) {
    return Input{any_integer ? reinterpret_cast<int8_t*>(at(codes)) : nullptr, at(scale),
                 reinterpret_cast<int32_t*>(at(sum)), nullptr, 0};
  };
  if (rows == 1) {  // every worker for itself: cheaper than a barrier
    const Scratch& own = scratch_[static_cast<std::size_t>(worker)];
    Input in = quantized(own.codes, own.scale, own.sum);
    in.x = moved ? at(own.normed) : mutable_value(op.inputs[0]);
    in.ldx = stride;
    if (any_integer || moved) read_tile(op, row_map, 0, 1, in, 0, at(own.normed), stride);
    return in;
  }
  Input in = quantized(codes_, scale_, sum_);
  in.x = moved ? at(normed_) : mutable_value(op.inputs[0]);
  in.ldx = moved ? stride : padded_width(op.inputs[0]);
  if (!any_integer && !moved) return in;
  for (int64_t tile; (tile = claim(index, 0)) * kTileRows < rows;) {
    const int64_t row = tile * kTileRows;
    const int count = static_cast<int>(std::min<int64_t>(kTileRows, rows - row));
    float* normed = any_float ? at(normed_) + row * stride : at(scratch_[static_cast<std::size_t>(worker)].normed);
    read_tile(op, row_map, row, count, in, row, normed, stride);
  }
  team_.barrier();
  return in;
}

void Plan::run_linear_op(const Op& op, std::size_t index, const int32_t* row_map, int64_t rows, float* head_out,
                         int worker) noexcept {
  const Input in = read_input(op, index, row_map, rows, worker);
  const bool glu = op.kind == OpKind::kGlu;
  const int64_t k = op.weights[0]->view().k;
  float* tile = at(scratch_[static_cast<std::size_t>(worker)].tile);

  // One item: a chunk of panels times a block of rows.  A glu computes gate and up over the same panels.
  const std::size_t outputs = glu ? 1 : op.weights.size();
  int64_t total_panels = 0;
  for (std::size_t i = 0; i < outputs; ++i) total_panels += op.weights[i]->panels();
  const int64_t row_block = 8 * kTileRows;
  const int64_t row_blocks = ceil_div(rows, row_block);
  // Few rows: one contiguous run of panels a worker, which memory streams best, and the same at every step, so that it
  // stays in the caches near it.  Many: pieces that stay in the cache,
  // and enough of them to even out.
  const bool few = rows <= kTileRows;
  const int64_t wanted = ceil_div(total_panels * row_blocks, team_.size() * (few ? 1 : 4));
  const int64_t chunk = std::clamp<int64_t>(wanted, 1, few && !glu ? wanted : kPanelsPerItem);

  const auto multiply = [&](const PackedMatrix& weight, int64_t begin, int64_t end, int64_t row, int count, float* y,
                            int64_t ldy) {
    const Weights& w = weight.view();
    const QuantizedRows q = in.codes != nullptr ? quantized_tile(in, k, row, count) : QuantizedRows{};
    kernels_.gemm({&w, begin, end, q, in.x + row * in.ldx, in.ldx, count, y, ldy});
  };

  for (int64_t next = worker;; next += team_.size()) {
    const int64_t item = few ? next : claim(index, 1);
    std::size_t which = 0;
    int64_t rest = item;
    while (which < outputs && rest >= ceil_div(op.weights[which]->panels(), chunk) * row_blocks) {
      rest -= ceil_div(op.weights[which]->panels(), chunk) * row_blocks;
      ++which;
    }
    if (which == outputs) return;
    const int64_t begin = rest / row_blocks * chunk;
    const int64_t end = std::min(begin + chunk, op.weights[which]->panels());
    const int64_t first_row = rest % row_blocks * row_block;
    const ValueId id = op.outputs[which];
    const int64_t ldy = padded_width(id);
    float* out = head_out != nullptr ? head_out : mutable_value(id);
    const int64_t lanes = (end - begin) * kLanes;
    for (int64_t row = first_row; row < std::min(rows, first_row + row_block); row += kTileRows) {
      const int count = static_cast<int>(std::min<int64_t>(kTileRows, rows - row));
      float* y = out + row * ldy + begin * kLanes;
      if (glu) {
        multiply(*op.weights[0], begin, end, row, count, tile, kPanelsPerItem * kLanes);
        multiply(*op.weights[1], begin, end, row, count, y, ldy);
        for (int r = 0; r < count; ++r) {
          kernels_.silu_mul(tile + r * kPanelsPerItem * kLanes, lanes, y + r * ldy);
        }
        continue;
      }
      multiply(*op.weights[which], begin, end, row, count, y, ldy);
      if (op.residual == kNoValue) continue;
      for (int r = 0; r < count; ++r) {
        const float* residual = mutable_value(op.residual) + (row + r) * padded_width(op.residual);
        kernels_.add(residual + begin * kLanes, lanes, y + r * ldy);
      }
    }
  }
}

void Plan::store_keys_and_values(const Op& op, int64_t row, int64_t position, uint16_t* const* pages) noexcept {
  const int64_t pairs = static_cast<int64_t>(program_.rope().inverse_frequency.size());
  const AttentionShape& shape = op.attention;
  const auto rotate = [&](ValueId id, int64_t heads) {
    float* x = mutable_value(id) + row * padded_width(id);
    for (int64_t head = 0; pairs > 0 && head < heads; ++head) {
      kernels_.rope(x + head * shape.head_dim, at(cosine_) + row * pairs, at(sine_) + row * pairs, pairs,
                    program_.rope().interleaved);
    }
    return x;
  };
  rotate(op.inputs[0], shape.heads);
  const float* k = rotate(op.inputs[1], shape.kv_heads);
  const float* v = mutable_value(op.inputs[2]) + row * padded_width(op.inputs[2]);
  uint16_t* page = pages[position / kPageTokens];
  const int64_t slot = position % kPageTokens;
  uint16_t half[64];
  for (int64_t head = 0; head < shape.kv_heads; ++head) {
    uint16_t* keys = page + cache_.k_offset(shape.layer, head);
    for (int64_t d = 0; d < shape.head_dim; d += 64) {
      const int64_t count = std::min<int64_t>(64, shape.head_dim - d);
      kernels_.to_half(k + head * shape.head_dim + d, count, half);
      for (int64_t i = 0; i < count; ++i) keys[(d + i) * kPageTokens + slot] = half[i];
    }
    kernels_.to_half(v + head * shape.head_dim, shape.head_dim,
                     page + cache_.v_offset(shape.layer, head) + slot * cache_.padded_dim());
  }
}

void Plan::run_attention(const Op& op, std::size_t index, int worker) noexcept {
  const int64_t blocks = static_cast<int64_t>(blocks_.size());
  for (int64_t block; (block = claim(index, 0)) < blocks;) {
    const RowBlock& b = blocks_[static_cast<std::size_t>(block)];
    for (int64_t r = 0; r < b.rows; ++r) store_keys_and_values(op, b.row + r, b.position + r, b.pages);
  }
  team_.barrier();
  const int64_t group = op.attention.heads / op.attention.kv_heads;
  const int64_t splits = ceil_div(group, head_chunk_);
  const int64_t heads = op.attention.kv_heads * splits;
  for (int64_t item; (item = claim(index, 1)) < blocks * heads;) {
    const int64_t kv_head = item % heads / splits;
    const int64_t first = item % splits * head_chunk_;
    attend_block(op, item / heads, kv_head, kv_head * group + first, std::min(head_chunk_, group - first), worker);
  }
}

void Plan::attend_block(const Op& op, int64_t block, int64_t kv_head, int64_t first_head, int64_t head_count,
                        int worker) noexcept {
  const RowBlock& b = blocks_[static_cast<std::size_t>(block)];
  const AttentionShape& shape = op.attention;
  Attend a{};
  for (int64_t r = 0; r < b.rows; ++r) {
    for (int64_t head = first_head; head < first_head + head_count; ++head, ++a.rows) {
      a.q[a.rows] = mutable_value(op.inputs[0]) + (b.row + r) * padded_width(op.inputs[0]) + head * shape.head_dim;
      a.out[a.rows] = mutable_value(op.outputs[0]) + (b.row + r) * padded_width(op.outputs[0]) + head * shape.head_dim;
      a.limit[a.rows] = b.position + r + 1;
    }
  }
  a.pages = b.pages;
  a.k_offset = cache_.k_offset(shape.layer, kv_head);
  a.v_offset = cache_.v_offset(shape.layer, kv_head);
  a.head_dim = shape.head_dim;
  a.scale = shape.scale;
  a.scores = at(scratch_[static_cast<std::size_t>(worker)].scores);
  a.scores_stride = round_up(limits_.context, kLanes);
  kernels_.attend(a);
}

}  // namespace cpuinfer
