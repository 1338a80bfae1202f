// Sparse mixtures of experts: every row's experts, then each expert's rows together, then each row's sum.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/rounding.h"
#include "plan/plan.h"

namespace cpuinfer {

namespace {

// Of an expert's inputs; null: as they come.
const int32_t* order_of(const std::vector<int32_t>& orders, int64_t expert, int64_t inputs) {
  return orders.empty() ? nullptr : orders.data() + expert * inputs;
}

}  // namespace

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
  route_rows(op, worker);
  phases_.run(worker, 1, [&](int64_t) { tiles_[index] = sort_assignments(op); });
  phases_.settle(worker);
  const int64_t tiles = tiles_[index];
  each_expert_item(op, *op.weights[1], tiles, worker, [&](const ExpertItem& item) { run_inner(op, item, worker); });
  each_expert_item(op, *op.weights[3], tiles, worker, [&](const ExpertItem& item) { run_outer(op, item, worker); });
  phases_.run(worker, step_.rows, [&](int64_t row) { mix_experts(op, row); });
}

void Plan::route_rows(const Op& op, int worker) noexcept {
  phases_.run(worker, ceil_div(step_.rows, int64_t{kTileRows}), [&](int64_t tile) {
    const int64_t first = tile * kTileRows, count = std::min<int64_t>(kTileRows, step_.rows - first);
    int32_t rows[kTileRows];
    for (int64_t i = 0; i < count; ++i) rows[i] = static_cast<int32_t>(first + i);
    read_tile(op, {rows, nullptr}, 0, static_cast<int>(count), own_input(op, worker), at(own(worker).normed), worker);
    route(op, first, static_cast<int>(count), worker);
  });
}

// `weight` holds the matrices of all experts, which have as many panels each.
template <typename Body>
void Plan::each_expert_item(const Op& op, const PackedMatrix& weight, int64_t tiles, int worker,
                            const Body& body) noexcept {
  const int64_t panels = weight.panels() / op.experts.count;
  const int64_t chunk = std::clamp<int64_t>(ceil_div(tiles * panels, team_.size() * int64_t{4}), 1, kPanelsPerItem);
  const int64_t chunks = ceil_div(panels, chunk);
  const auto* chosen = reinterpret_cast<const int32_t*>(at(chosen_));
  const Assignments sorted = assignments();
  int64_t last = -1;
  phases_.run(worker, tiles * chunks, [&](int64_t number) {
    const int64_t tile = number / chunks, begin = number % chunks * chunk, first = sorted.starts[tile];
    const int64_t expert = chosen[sorted.order[first]], before = expert * panels;
    body(ExpertItem{expert, first, sorted.starts[tile + 1] - first, before + begin,
                    before + std::min(begin + chunk, panels), begin * kLanes, tile != last});
    last = tile;
  });
}

// Gate and up: inner values, in the order of assignments.
void Plan::run_inner(const Op& op, const ExpertItem& item, int worker) noexcept {
  const Input in = own_input(op, worker);
  if (item.fresh) {
    const auto used = static_cast<int32_t>(op.experts.used);
    int32_t rows[kTileRows];
    for (int64_t i = 0; i < item.count; ++i) rows[i] = assignments().order[item.first + i] / used;
    const int32_t* order = order_of(op.input_order, item.expert, op.weights[1]->view().k);
    read_tile(op, {rows, order}, 0, static_cast<int>(item.count), in, at(own(worker).normed), worker);
  }
  constexpr int64_t kStride = kPanelsPerItem * kLanes;
  const int64_t inner = op.weights[3]->view().k, lanes = (item.end - item.begin) * kLanes;
  float *gate = at(own(worker).gate), *y = at(inner_) + item.first * inner + item.output;
  multiply(op.weights[1]->view(), item.begin, item.end, in, 0, item.count, gate, kStride);
  multiply(op.weights[2]->view(), item.begin, item.end, in, 0, item.count, y, inner);
  for (int64_t r = 0; r < item.count; ++r) {
    kernels_.activate(op.activation, lanes, gate + r * kStride);
    kernels_.multiply(gate + r * kStride, lanes, y + r * inner);
  }
}

// Down: outputs, in the order of assignments.
void Plan::run_outer(const Op& op, const ExpertItem& item, int worker) noexcept {
  const PackedMatrix& down = *op.weights[3];
  const int64_t inner = down.view().k, hidden = op.weights[0]->view().k;
  const bool floats = is_float(down.view().encoding);
  const Input own_room = own_input(op, worker);
  const float* x = at(inner_) + item.first * inner;
  if (const int32_t* order = order_of(op.inner_order, item.expert, inner)) {
    float* ordered = at(own(worker).normed);
    for (int64_t i = 0; item.fresh && i < item.count * inner; ++i) {
      ordered[i] = x[i / inner * inner + order[i % inner]];
    }
    x = ordered;
  }
  const Input in{floats ? nullptr : own_room.codes, own_room.scale, own_room.sum, x, inner};
  if (item.fresh && !floats) {
    kernels_.quantize(x, inner, inner, {static_cast<int>(item.count), in.codes, in.scale, in.sum});
  }
  float* y = at(mixed_) + item.first * hidden + item.output;
  multiply(down.view(), item.begin, item.end, in, 0, item.count, y, hidden);
}

// A row's output: those of its experts by their shares.
void Plan::mix_experts(const Op& op, int64_t row) noexcept {
  const int64_t hidden = op.weights[0]->view().k, used = op.experts.used;
  float* out = row_of(op.outputs[0], row);
  std::memset(out, 0, static_cast<std::size_t>(hidden) * sizeof(float));
  for (int64_t i = row * used; i < (row + 1) * used; ++i) {
    const float share = at(shares_)[i];
    const float* x = at(mixed_) + assignments().place[i] * hidden;
    for (int64_t d = 0; d < hidden; ++d) out[d] += share * x[d];
  }
  add_residual(op, row, 0, hidden, out);
}

}  // namespace cpuinfer
