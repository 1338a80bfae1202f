// What tile units do of an op: its products and attention for the rows that are whole pages of prompts.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "core/rounding.h"
#include "plan/plan.h"

namespace cpuinfer {

// The input of tiled rows, as TileProduct::x, in a phase of its own.
void Plan::read_tiles(const Op& op, int worker) noexcept {
  const ValueId x = op.inputs[0];
  const Reading reading = reading_of(op);
  const int64_t k = op.weights[0]->view().k;
  float* normed = at(own(worker).normed);
  phases_.run(worker, step_.tiled / kTileRows, [&](int64_t item) {
    for (int64_t row = item * kTileRows; row < (item + 1) * kTileRows; ++row) {
      const float* source = row_of(x, row);
      if (rewrites(op, reading)) {
        read_row(op, reading.order, source, normed, worker);
        source = normed;
      }
      kernels_.tiles->to_tiles(source, k, step_.tiled, row, reinterpret_cast<uint16_t*>(at(tiles_of_rows_)));
    }
  });
}

int64_t Plan::run_tiles(const Op& op, int worker) noexcept {
  const bool fit = std::ranges::all_of(op.weights, [](const auto& w) { return fits_tiles(w->view().encoding); });
  if (step_.tiled == 0 || !fit) return 0;
  read_tiles(op, worker);
  const bool gated = op.kind == OpKind::kGlu;
  // Panels go in pairs: two share the tiles of the rows.  Items of the same rows are neighbours, so that a worker keeps
  // to some rows and finds them in its second cache.
  const int64_t blocks = step_.tiled / kTileBlock, sweeps = ceil_div(step_.tiled, kTileSweep);
  const int64_t panels = count_panels(op), pairs = ceil_div(panels, int64_t{2});
  const int64_t most = gated ? kTilePanels / 4 : kTilePanels / 2, workers = team_.size();
  const int64_t chunks = std::min(pairs, round_up(ceil_div(pairs, most), workers / std::gcd(workers, sweeps)));
  phases_.run(worker, sweeps * chunks, [&](int64_t i) {
    const int64_t sweep = i / chunks, chunk = i % chunks;
    const TileItem item{blocks * sweep / sweeps * kTileBlock, blocks * (sweep + 1) / sweeps * kTileBlock,
                        pairs * chunk / chunks * 2, std::min(panels, pairs * (chunk + 1) / chunks * 2)};
    gated ? run_tiled_glu(op, item, worker) : run_tiled_linears(op, item, worker);
  });
  return step_.tiled;
}

// y [rows of the item][kTileStride] = those rows times the item's panels.
void Plan::multiply_tiles(const PackedMatrix& weight, const TileItem& item, float* y) const noexcept {
  const auto* x = reinterpret_cast<const uint16_t*>(arena_.as<float>() + tiles_of_rows_);
  kernels_.tiles->multiply(
      {&weight.view(), item.panel, item.panel_end, x, step_.tiled, item.row, item.row_end - item.row, y, kTileStride});
}

void Plan::run_tiled_linears(const Op& op, const TileItem& item, int worker) noexcept {
  float* sums = at(own(worker).tile_sums);
  each_matrix(op, item.panel, item.panel_end, [&](std::size_t weight, int64_t panel, int64_t panel_end) {
    const int64_t first = panel * kLanes, lanes = (panel_end - panel) * kLanes;
    const int64_t width = std::min(lanes, op.weights[weight]->view().n - first);
    multiply_tiles(*op.weights[weight], {item.row, item.row_end, panel, panel_end}, sums);
    for (int64_t row = item.row; row < item.row_end; ++row) {
      float* y = sums + (row - item.row) * kTileStride;
      finish_linear(op, weight, row, first, width, y);
      std::memcpy(row_of(op.outputs[weight], row) + first, y, static_cast<std::size_t>(lanes) * sizeof(float));
    }
  });
}

void Plan::run_tiled_glu(const Op& op, const TileItem& item, int worker) noexcept {
  const int64_t first = item.panel * kLanes, lanes = (item.panel_end - item.panel) * kLanes;
  float *gates = at(own(worker).tile_sums), *ups = gates + kTilePanels / 2 * kLanes;
  multiply_tiles(*op.weights[0], item, gates);
  multiply_tiles(*op.weights[1], item, ups);
  for (int64_t row = item.row; row < item.row_end; ++row) {
    const int64_t at = (row - item.row) * kTileStride;
    finish_glu(op, first, lanes, gates + at, ups + at);
    std::memcpy(row_of(op.outputs[0], row) + first, ups + at, static_cast<std::size_t>(lanes) * sizeof(float));
  }
}

void Plan::attend_tiles(const Op& op, int worker) noexcept {
  const AttentionShape& shape = op.attention;
  const int64_t group = shape.heads / shape.kv_heads, splits = ceil_div(group, int64_t{kTileHeads});
  const int64_t heads = shape.kv_heads * splits, blocks = static_cast<int64_t>(tile_queries_.size());
  phases_.run(worker, blocks * heads, [&](int64_t item) {
    // The last queries first: they see most.
    const RowBlock& b = tile_queries_[static_cast<std::size_t>(blocks - 1 - item / heads)];
    const int64_t kv_head = item % heads / splits, split = item % splits;
    const int64_t first = group * split / splits, head = kv_head * group + first;
    TileAttend a{};
    a.rows = b.rows;
    a.position = b.position;
    a.heads = group * (split + 1) / splits - first;
    a.q = row_of(op.inputs[0], b.row) + head * shape.head_dim;
    a.stride = padded_width(op.inputs[0]);
    a.out = row_of(op.outputs[0], b.row) + head * shape.head_dim;
    a.out_stride = padded_width(op.outputs[0]);
    a.window = shape.window;
    a.pages = b.pages;
    a.cache = cache_.type;
    a.place = cache_.place(shape.layer, kv_head);
    a.head_dim = shape.head_dim;
    a.scale = shape.scale;
    a.softcap = shape.softcap;
    a.slope = shape.slopes.empty() ? nullptr : shape.slopes.data() + head;
    a.room = at(own(worker).tile_attend);
    kernels_.tiles->attend(a);
  });
}

}  // namespace cpuinfer
