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

// both [panels][2][kLanes] -> its first halves, in place, and its second ones, [lanes].
void unweave(float* both, int64_t lanes, float* seconds) {
  for (int64_t i = 0; i < lanes; i += kLanes) {
    std::copy_n(both + 2 * i + kLanes, kLanes, seconds + i);
    std::memmove(both + i, both + 2 * i, kLanes * sizeof(float));  // the first stays where it is
  }
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
  const float* source = row_of(x, reading.first + row);
  int64_t stride = padded_width(x);
  if (rewrites(op, reading)) {
    const int64_t own_stride = round_up(k, kLanes);
    for (int r = 0; r < rows; ++r) {
      const int64_t from = reading.rows != nullptr ? reading.rows[row + r] : reading.first + row + r;
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

// All rows, prepared once for all workers, in a phase of its own.
Plan::Input Plan::read_rows(const Op& op, const Reading& reading, int64_t rows, int worker) noexcept {
  const bool rewritten = rewrites(op, reading), quantised = any_quantised(op);
  const bool kept = any_float(op);  // the floats are read again
  const int64_t k = op.weights[0]->view().k, stride = round_up(k, kLanes);
  const Input in{quantised ? reinterpret_cast<int8_t*>(at(codes_)) : nullptr, at(scale_),
                 reinterpret_cast<int32_t*>(at(sum_)), at(normed_), stride};
  if (quantised || rewritten) {
    phases_.run(worker, ceil_div(rows, kTileRows), [&](int64_t tile) {
      const int64_t row = tile * kTileRows;
      const int count = static_cast<int>(std::min<int64_t>(kTileRows, rows - row));
      const QuantizedRows q = quantized_tile(in, k, row, count);
      read_tile(op, reading, row, count, {q.codes, q.scale, q.sum, nullptr, 0},
                at(kept ? normed_ + row * stride : own(worker).normed), worker);
    });
  }
  return in;
}

// A glu is cut like its gate alone.
int64_t Plan::count_panels(const Op& op) noexcept {
  int64_t panels = 0;
  for (std::size_t i = 0; i < op.outputs.size(); ++i) panels += op.weights[i]->panels();
  return panels;
}

// Few rows: chunks of some microseconds, so that a worker that falls behind leaves the rest to others, and as many for
// each worker; but of panels enough to be read side by side.  Many: chunks that stay in the cache, and enough of them
// to even out.
Plan::Cut Plan::cut(const Op& op, int64_t rows) const noexcept {
  const int64_t panels = count_panels(op), row_blocks = ceil_div(rows, int64_t{kMostRows}), workers = team_.size();
  if (rows > kTileRows) {
    const int64_t chunk = std::clamp<int64_t>(ceil_div(panels * row_blocks, workers * 4), 1, kPanelsPerItem);
    return {ceil_div(panels, chunk), row_blocks};
  }
  const int64_t least = op.kind == OpKind::kGlu ? ceil_div(2 * panels * rows, kMostRows * kPanelsPerItem) : 1;
  const int64_t bytes = panels * op.weights[0]->panel_bytes();
  const int64_t wanted = workers == 1 ? 1 : std::min(ceil_div(bytes, kItemBytes), panels / kPanelsAtOnce);
  return {std::min(panels, round_up(std::max(least, wanted), workers)), row_blocks};
}

// Runs body(piece) for each matrix that an item has panels of.
template <typename Body>
void Plan::each_part(const Op& op, const Cut& cut, int64_t rows, int64_t item, const Body& body) noexcept {
  const int64_t panels = count_panels(op), chunk = item / cut.row_blocks,
                row = item % cut.row_blocks * int64_t{kMostRows};
  each_matrix(op, panels * chunk / cut.chunks, panels * (chunk + 1) / cut.chunks,
              [&](std::size_t weight, int64_t begin, int64_t end) {
                body(Piece{weight, begin, end, row, std::min(rows, row + int64_t{kMostRows})});
              });
}

template <typename Body>
void Plan::each_piece(const Op& op, const Reading& reading, int64_t rows, int worker, const Body& body) noexcept {
  // A single row is prepared by every worker for itself, once it has a piece: cheaper than a phase.
  bool ready = rows > 1;
  Input in = ready ? read_rows(op, reading, rows, worker) : own_input(op, worker);
  if (!rewrites(op, reading)) {
    in.x = row_of(op.inputs[0], reading.first);
    in.ldx = padded_width(op.inputs[0]);
  }
  const Cut pieces = cut(op, rows);
  phases_.run(worker, pieces.chunks * pieces.row_blocks, [&](int64_t item) {
    if (!ready) read_tile(op, reading, 0, 1, in, at(own(worker).normed), worker);
    ready = true;
    each_part(op, pieces, rows, item, [&](const Piece& piece) { body(piece, in); });
  });
}

// y [count][ldy] = rows of the input, `row` on, times panels [begin, end) of a weight; count <= kMostRows.
void Plan::multiply(const Weights& w, int64_t begin, int64_t end, const Input& in, int64_t row, int64_t count, float* y,
                    int64_t ldy) const noexcept {
  const int rows = static_cast<int>(count);
  const QuantizedRows first = quantized_tile(in, w.k, row, std::min(kTileRows, rows));
  kernels_.gemm({&w, begin, end, first, in.x + row * in.ldx, in.ldx, rows, y, ldy});
}

// What follows the products of a row: y [width] of a weight's outputs from `first` on.
void Plan::finish_linear(const Op& op, std::size_t weight, int64_t row, int64_t first, int64_t width,
                         float* y) noexcept {
  const std::vector<float>& bias = op.biases[weight];
  if (!bias.empty()) kernels_.add(bias.data() + first, width, y);
  if (op.activation != Activation::kNone) kernels_.activate(op.activation, width, y);
  if (op.softcap != 0) kernels_.softcap(op.softcap, width, y);
  add_residual(op, row, first, width, y);
}

// y = act(gate) * y, for outputs [first, first + lanes).
void Plan::finish_glu(const Op& op, int64_t first, int64_t lanes, float* gate, float* y) noexcept {
  const int64_t width = std::min(lanes, op.weights[0]->view().n - first);
  if (!op.biases[0].empty()) kernels_.add(op.biases[0].data() + first, width, gate);
  if (!op.biases[1].empty()) kernels_.add(op.biases[1].data() + first, width, y);
  kernels_.activate(op.activation, lanes, gate);
  kernels_.multiply(gate, lanes, y);
}

Plan::Reading Plan::reading_of(const Op& op) noexcept {
  return {nullptr, op.input_order.empty() ? nullptr : op.input_order.data()};
}

void Plan::run_linears(const Op& op, const int32_t* row_map, int64_t rows, float* head_out, int worker) noexcept {
  Reading reading = reading_of(op);
  reading.rows = row_map;
  if (row_map == nullptr) reading.first = run_tiles(op, worker);
  if (reading.first == rows) return;
  each_piece(op, reading, rows - reading.first, worker, [&](const Piece& piece, const Input& in) {
    const ValueId id = op.outputs[piece.weight];
    const Weights& weight = op.weights[piece.weight]->view();
    const int64_t ldy = padded_width(id), first = piece.begin * kLanes;
    const int64_t width = std::min(piece.end * kLanes, weight.n) - first;
    float* out = (head_out != nullptr ? head_out : row_of(id, reading.first)) + first;
    multiply(weight, piece.begin, piece.end, in, piece.row, piece.row_end - piece.row, out + piece.row * ldy, ldy);
    for (int64_t row = piece.row; row < piece.row_end; ++row) {
      finish_linear(op, piece.weight, reading.first + row, first, width, out + row * ldy);
    }
  });
}

void Plan::run_glu(const Op& op, int worker) noexcept {
  Reading reading = reading_of(op);
  reading.first = run_tiles(op, worker);
  const int64_t rows = step_.rows - reading.first;
  if (rows == 0) return;
  const PackedMatrix &gates = *op.weights[0], &ups = *op.weights[1];
  // Few rows read panels as they lie in memory, many have them in the cache.
  const std::optional<Weights> both = rows <= kTileRows ? woven(gates, ups) : std::nullopt;
  float* gate = at(own(worker).gate);
  each_piece(op, reading, rows, worker, [&](const Piece& piece, const Input& in) {
    const int64_t ldy = padded_width(op.outputs[0]), lanes = (piece.end - piece.begin) * kLanes;
    const int64_t first = piece.begin * kLanes, count = piece.row_end - piece.row;
    float* y = row_of(op.outputs[0], reading.first + piece.row) + first;
    if (both) {
      multiply(*both, 2 * piece.begin, 2 * piece.end, in, piece.row, count, gate, 2 * lanes);
    } else {
      multiply(gates.view(), piece.begin, piece.end, in, piece.row, count, gate, lanes);
      multiply(ups.view(), piece.begin, piece.end, in, piece.row, count, y, ldy);
    }
    for (int64_t r = 0; r < count; ++r) {
      float* row = gate + r * (both ? 2 * lanes : lanes);
      if (both) unweave(row, lanes, y + r * ldy);
      finish_glu(op, first, lanes, row, y + r * ldy);
    }
  });
}

}  // namespace cpuinfer
