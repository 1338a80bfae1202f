// Products with weights: how their input is normalised and quantised, and how the work is cut and shared.
#include <algorithm>
#include <cstring>

#include "core/rounding.h"
#include "plan/plan.h"

namespace cpuinfer {

namespace {

bool any_quantised(const Op& op) {
  return std::ranges::any_of(op.weights, [](const auto& weight) { return !is_float(weight->view().encoding); });
}
bool any_float(const Op& op) {
  return std::ranges::any_of(op.weights, [](const auto& weight) { return is_float(weight->view().encoding); });
}

}  // namespace

QuantizedRows Plan::quantized_tile(const Input& in, int64_t k, int64_t row, int rows) const noexcept {
  if (in.codes == nullptr) return {};
  return {rows, in.codes + row * k, in.scale + row * (k / kGroup), in.sum + row * (k / kHalf)};
}

// Whether the floats that kernels see differ from the op's input.
bool Plan::rewrites(const Op& op, const Reading& reading) noexcept {
  return op.norm.kind != NormKind::kNone || reading.rows != nullptr || reading.order != nullptr;
}

// One row as the weights take it.
void Plan::read_row(const Op& op, const int32_t* order, const float* x, float* out, int worker) noexcept {
  const int64_t k = op.weights[0]->view().k;
  float* normed = order == nullptr ? out : at(own(worker).unordered);
  if (op.norm.kind != NormKind::kNone) {
    normalize(op.norm, x, k, normed);
    x = normed;
  }
  if (order != nullptr) {
    for (int64_t i = 0; i < k; ++i) out[i] = x[order[i]];
  } else if (x != out) {
    std::memcpy(out, x, static_cast<std::size_t>(k) * sizeof(float));
  }
}

// Reads a tile of an op's input: rewritten into `floats` where the weights do not take it as it is, and quantised into
// `in`, whose first row it is, where they ask for it.
void Plan::read_tile(const Op& op, const Reading& reading, int64_t row, int rows, const Input& in, float* floats,
                     int worker) noexcept {
  const ValueId x = op.inputs[0];
  const int64_t k = op.weights[0]->view().k;
  const float* source = row_of(x, row);
  int64_t stride = padded_width(x);
  if (rewrites(op, reading)) {
    const int64_t own_stride = round_up(k, kLanes);
    for (int r = 0; r < rows; ++r) {
      const int64_t from = reading.rows != nullptr ? reading.rows[row + r] : row + r;
      read_row(op, reading.order, row_of(x, from), floats + r * own_stride, worker);
    }
    source = floats;
    stride = own_stride;
  }
  if (in.codes != nullptr) kernels_.quantize(source, stride, k, {rows, in.codes, in.scale, in.sum});
}

// A worker's own room for one tile.
Plan::Input Plan::own_input(const Op& op, int worker) noexcept {
  const Scratch& scratch = own(worker);
  const int64_t k = op.weights[0]->view().k;
  return {any_quantised(op) ? reinterpret_cast<int8_t*>(at(scratch.codes)) : nullptr, at(scratch.scale),
          reinterpret_cast<int32_t*>(at(scratch.sum)), at(scratch.normed), round_up(k, kLanes)};
}

Plan::Input Plan::read_input(const Op& op, std::size_t index, const int32_t* row_map, int64_t rows,
                             int worker) noexcept {
  const Reading reading{row_map, op.input_order.empty() ? nullptr : op.input_order.data()};
  const bool rewritten = rewrites(op, reading), quantised = any_quantised(op);
  const int64_t k = op.weights[0]->view().k, stride = round_up(k, kLanes);
  float* normed = at(own(worker).normed);
  Input in = own_input(op, worker);
  if (rows == 1) {  // every worker for itself: cheaper than a barrier
    read_tile(op, reading, 0, 1, in, normed, worker);
  } else {
    const bool kept = any_float(op);  // the floats are read again
    in = {quantised ? reinterpret_cast<int8_t*>(at(codes_)) : nullptr, at(scale_), reinterpret_cast<int32_t*>(at(sum_)),
          at(normed_), stride};
    for (int64_t tile; (quantised || rewritten) && (tile = claim(index, 0)) * kTileRows < rows;) {
      const int64_t row = tile * kTileRows;
      const int count = static_cast<int>(std::min<int64_t>(kTileRows, rows - row));
      const QuantizedRows q = quantized_tile(in, k, row, count);
      read_tile(op, reading, row, count, {q.codes, q.scale, q.sum, nullptr, 0},
                kept ? at(normed_) + row * stride : normed, worker);
    }
    if (quantised || rewritten) team_.barrier();
  }
  if (!rewritten) {
    in.x = mutable_value(op.inputs[0]);
    in.ldx = padded_width(op.inputs[0]);
  }
  return in;
}

// Few rows: one contiguous run of panels a worker, which memory streams best, the same at every step, so that it stays
// in the caches near it.  Many: pieces that stay in the cache, and enough of them to even out.
Plan::Cut Plan::cut(const Op& op, int64_t rows) const noexcept {
  const bool glu = op.kind == OpKind::kGlu;
  int64_t panels = 0;
  for (std::size_t i = 0; i < op.outputs.size(); ++i) panels += op.weights[i]->panels();
  const bool few = rows <= kTileRows;
  const int64_t row_blocks = ceil_div(rows, kRowBlock);
  const int64_t wanted = ceil_div(panels * row_blocks, team_.size() * (few ? 1 : 4));
  return {std::clamp<int64_t>(wanted, 1, few && !glu ? wanted : kPanelsPerItem), row_blocks, few};
}

// The next piece for a worker, whose `turn` starts at its number; a glu is cut like its gate alone.
bool Plan::next_item(const Op& op, std::size_t index, const Cut& cut, int64_t rows, int64_t& turn,
                     Item& item) noexcept {
  int64_t rest = cut.few ? turn : claim(index, 1);
  turn += team_.size();
  for (std::size_t weight = 0; weight < op.outputs.size(); ++weight) {
    const int64_t panels = op.weights[weight]->panels(), items = ceil_div(panels, cut.chunk) * cut.row_blocks;
    if (rest < items) {
      const int64_t begin = rest / cut.row_blocks * cut.chunk, row = rest % cut.row_blocks * kRowBlock;
      item = {weight, begin, std::min(begin + cut.chunk, panels), row, std::min(rows, row + kRowBlock)};
      return true;
    }
    rest -= items;
  }
  return false;
}

// y [count][ldy] = rows of the input, `row` on, times panels [begin, end) of a weight.
void Plan::multiply(const PackedMatrix& weight, int64_t begin, int64_t end, const Input& in, int64_t row, int64_t count,
                    float* y, int64_t ldy) const noexcept {
  const Weights& w = weight.view();
  const int rows = static_cast<int>(count);
  kernels_.gemm({&w, begin, end, quantized_tile(in, w.k, row, rows), in.x + row * in.ldx, in.ldx, rows, y, ldy});
}

void Plan::run_linears(const Op& op, std::size_t index, const int32_t* row_map, int64_t rows, float* head_out,
                       int worker) noexcept {
  const Input in = read_input(op, index, row_map, rows, worker);
  const Cut pieces = cut(op, rows);
  int64_t turn = worker;
  for (Item item; next_item(op, index, pieces, rows, turn, item);) {
    const ValueId id = op.outputs[item.weight];
    const PackedMatrix& weight = *op.weights[item.weight];
    const std::vector<float>& bias = op.biases[item.weight];
    const int64_t ldy = padded_width(id), first = item.begin * kLanes;
    const int64_t width = std::min(item.end * kLanes, weight.view().n) - first;
    float* out = (head_out != nullptr ? head_out : mutable_value(id)) + first;
    for (int64_t row = item.row; row < item.row_end; row += kTileRows) {
      const int64_t count = std::min<int64_t>(kTileRows, item.row_end - row);
      multiply(weight, item.begin, item.end, in, row, count, out + row * ldy, ldy);
      for (int64_t r = row; r < row + count; ++r) {
        float* y = out + r * ldy;
        if (!bias.empty()) kernels_.add(bias.data() + first, width, y);
        if (op.activation != Activation::kNone) kernels_.activate(op.activation, width, y);
        if (op.softcap != 0) kernels_.softcap(op.softcap, width, y);
        add_residual(op, r, first, width, y);
      }
    }
  }
}

void Plan::run_glu(const Op& op, std::size_t index, int worker) noexcept {
  const Input in = read_input(op, index, nullptr, step_.rows, worker);
  const Cut pieces = cut(op, step_.rows);
  float* gate = at(own(worker).tile);
  constexpr int64_t kStride = kPanelsPerItem * kLanes;
  int64_t turn = worker;
  for (Item item; next_item(op, index, pieces, step_.rows, turn, item);) {
    const int64_t ldy = padded_width(op.outputs[0]), lanes = (item.end - item.begin) * kLanes;
    const int64_t first = item.begin * kLanes, width = std::min(lanes, op.weights[0]->view().n - first);
    for (int64_t row = item.row; row < item.row_end; row += kTileRows) {
      const int64_t count = std::min<int64_t>(kTileRows, item.row_end - row);
      float* y = row_of(op.outputs[0], row) + item.begin * kLanes;
      multiply(*op.weights[0], item.begin, item.end, in, row, count, gate, kStride);
      multiply(*op.weights[1], item.begin, item.end, in, row, count, y, ldy);
      for (int64_t r = 0; r < count; ++r) {
        if (!op.biases[0].empty()) kernels_.add(op.biases[0].data() + first, width, gate + r * kStride);
        if (!op.biases[1].empty()) kernels_.add(op.biases[1].data() + first, width, y + r * ldy);
        kernels_.activate(op.activation, lanes, gate + r * kStride);
        kernels_.multiply(gate + r * kStride, lanes, y + r * ldy);
      }
    }
  }
}

}  // namespace cpuinfer
