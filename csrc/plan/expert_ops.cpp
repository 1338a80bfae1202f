// Sparse mixtures of experts: every row's experts, then each expert's rows together, then each row's sum.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/rounding.h"
#include "plan/plan.h"

namespace cpuinfer {

// Chooses the experts of a tile of rows, whose input is in the worker's own room: softmax of the router's logits in
// double, the largest first, the lower expert on a tie.
void Plan::route(const Op& op, int64_t row, int rows, int worker) noexcept {
  const int64_t experts = op.experts.count, used = op.experts.used, stride = round_up(experts, kLanes);
  float* logits = at(own(worker).router);
  multiply(op.weights[0]->view(), 0, op.weights[0]->panels(), own_input(op, worker), 0, rows, logits, stride);
  for (int64_t r = row; r < row + rows; ++r, logits += stride) {
    auto* chosen = reinterpret_cast<int32_t*>(at(chosen_)) + r * used;
    float* share = at(shares_) + r * used;
    double total = 0, kept = 0;
    const double largest = static_cast<double>(*std::max_element(logits, logits + experts));
    for (int64_t e = 0; e < experts; ++e) total += std::exp(static_cast<double>(logits[e]) - largest);
    for (int64_t slot = 0; slot < used; ++slot) {
      int64_t best = -1;
      for (int64_t e = 0; e < experts; ++e) {
        const bool taken = std::find(chosen, chosen + slot, static_cast<int32_t>(e)) != chosen + slot;
        if (!taken && (best < 0 || logits[e] > logits[best])) best = e;
      }
      chosen[slot] = static_cast<int32_t>(best);
      const double p = std::exp(static_cast<double>(logits[best]) - largest) / total;
      share[slot] = static_cast<float>(p);
      kept += p;
    }
    for (int64_t slot = 0; op.experts.renormalise && slot < used; ++slot) {
      share[slot] = static_cast<float>(static_cast<double>(share[slot]) / kept);
    }
  }
}

Plan::Assignments Plan::assignments() noexcept {
  auto* order = reinterpret_cast<int32_t*>(at(assigned_));
  return {order, order + most_assigned_, order + 2 * most_assigned_};
}

// Puts assignments (row * used + slot) into the order of their experts and cuts them into tiles of up to kTileRows of
// one expert; returns how many.
int64_t Plan::sort_assignments(const Op& op) noexcept {
  const int64_t count = step_.rows * op.experts.used;
  const auto* chosen = reinterpret_cast<const int32_t*>(at(chosen_));
  const Assignments sorted = assignments();
  int64_t filled = 0, tiles = 0;
  for (int32_t expert = 0; expert < op.experts.count; ++expert) {
    const int64_t first = filled;
    for (int64_t i = 0; i < count; ++i) {
      if (chosen[i] != expert) continue;
      if ((filled - first) % kTileRows == 0) sorted.starts[tiles++] = static_cast<int32_t>(filled);
      sorted.place[i] = static_cast<int32_t>(filled);
      sorted.order[filled++] = static_cast<int32_t>(i);
    }
  }
  sorted.starts[tiles] = static_cast<int32_t>(count);
  return tiles;
}

void Plan::run_experts(const Op& op, std::size_t index, int worker) noexcept {
  const int64_t rows = step_.rows, used = op.experts.used, hidden = op.weights[0]->view().k;
  const PackedMatrix &gate = *op.weights[1], &up = *op.weights[2], &down = *op.weights[3];
  const int64_t inner = down.view().k, gate_panels = gate.panels() / op.experts.count;
  const int64_t down_panels = down.panels() / op.experts.count;
  const Input in = own_input(op, worker);
  int32_t row_map[kTileRows];
  float* floats = at(own(worker).normed);
  const auto read = [&](int64_t count, const int32_t* order) {
    read_tile(op, {row_map, order}, 0, static_cast<int>(count), in, floats, worker);
  };
  const auto order_of = [](const std::vector<int32_t>& orders, int64_t expert, int64_t inputs) {
    return orders.empty() ? nullptr : orders.data() + expert * inputs;
  };

  phases_.run(worker, ceil_div(rows, kTileRows), [&](int64_t tile) {
    const int64_t first = tile * kTileRows, count = std::min<int64_t>(kTileRows, rows - first);
    for (int64_t i = 0; i < count; ++i) row_map[i] = static_cast<int32_t>(first + i);
    read(count, nullptr);
    route(op, first, static_cast<int>(count), worker);
  });
  phases_.run(worker, 1, [&](int64_t) { tiles_[index] = sort_assignments(op); });
  phases_.settle(worker);
  const int64_t tiles = tiles_[index];
  const Assignments sorted = assignments();

  // Each item is a tile of one expert's rows times a chunk of its panels; inner values are in the order of assignments.
  const auto each_item = [&](int64_t panels, const auto& body) {
    const int64_t chunk = std::clamp<int64_t>(ceil_div(tiles * panels, team_.size() * int64_t{4}), 1, kPanelsPerItem);
    const int64_t chunks = ceil_div(panels, chunk);
    int64_t last = -1;
    phases_.run(worker, tiles * chunks, [&](int64_t item) {
      const int64_t number = item / chunks, begin = item % chunks * chunk, first = sorted.starts[number];
      const int64_t expert = reinterpret_cast<const int32_t*>(at(chosen_))[sorted.order[first]];
      body({expert, first, sorted.starts[number + 1] - first}, number != last, expert * panels + begin,
           expert * panels + std::min(begin + chunk, panels));
      last = number;
    });
  };
  each_item(gate_panels, [&](const ExpertTile& tile, bool fresh, int64_t begin, int64_t end) {
    if (fresh) {
      for (int64_t i = 0; i < tile.count; ++i) row_map[i] = sorted.order[tile.first + i] / static_cast<int32_t>(used);
      read(tile.count, order_of(op.input_order, tile.expert, hidden));
    }
    constexpr int64_t kStride = kPanelsPerItem * kLanes;
    float* gated = at(own(worker).gate);
    float* y = at(inner_) + tile.first * inner + (begin - tile.expert * gate_panels) * kLanes;
    multiply(gate.view(), begin, end, in, 0, tile.count, gated, kStride);
    multiply(up.view(), begin, end, in, 0, tile.count, y, inner);
    for (int64_t r = 0; r < tile.count; ++r) {
      kernels_.activate(op.activation, (end - begin) * kLanes, gated + r * kStride);
      kernels_.multiply(gated + r * kStride, (end - begin) * kLanes, y + r * inner);
    }
  });
  each_item(down_panels, [&](const ExpertTile& tile, bool fresh, int64_t begin, int64_t end) {
    const float* x = at(inner_) + tile.first * inner;
    if (const int32_t* order = order_of(op.inner_order, tile.expert, inner)) {
      for (int64_t i = 0; fresh && i < tile.count * inner; ++i) floats[i] = x[i / inner * inner + order[i % inner]];
      x = floats;
    }
    if (fresh && !is_float(down.view().encoding)) {
      kernels_.quantize(x, inner, inner, {static_cast<int>(tile.count), in.codes, in.scale, in.sum});
    }
    const Input values{is_float(down.view().encoding) ? nullptr : in.codes, in.scale, in.sum, x, inner};
    float* y = at(mixed_) + tile.first * hidden + (begin - tile.expert * down_panels) * kLanes;
    multiply(down.view(), begin, end, values, 0, tile.count, y, hidden);
  });
  phases_.run(worker, rows, [&](int64_t row) {
    float* out = row_of(op.outputs[0], row);
    std::memset(out, 0, static_cast<std::size_t>(hidden) * sizeof(float));
    for (int64_t i = row * used; i < (row + 1) * used; ++i) {
      const float share = at(shares_)[i];
      const float* x = at(mixed_) + sorted.place[i] * hidden;
      for (int64_t d = 0; d < hidden; ++d) out[d] += share * x[d];
    }
    add_residual(op, row, 0, hidden, out);
  });
}

}  // namespace cpuinfer
