// Checks a program once, lays out the arena, and walks the ops with all workers.
#include "plan/plan.h"

#include <algorithm>

#include "core/error.h"
#include "core/rounding.h"

namespace cpuinfer {

Plan::Plan(const Program& program, const KernelSet& kernels, WorkerTeam& team, const PlanLimits& limits)
    : program_(program), kernels_(kernels), team_(team), limits_(limits), phases_(team.size(), most_phases()) {
  check();
  lay_out_arena();
  if (limits.profile) profile_ = std::make_unique<Profile>(program, cache_);
}

void Plan::check() {
  if (limits_.rows < 1 || limits_.context < 1) throw Error(Fault::kInvalid, "a plan needs at least 1 row and position");
  const std::vector<Op>& ops = program_.ops();
  if (ops.empty() || ops.back().kind != OpKind::kLinears || ops.back().weights.size() != 1 ||
      ops.back().residual != kNoValue) {
    throw Error(Fault::kUnsupportedModel, "the last op must be the output head: one linear without residual");
  }
  for (const Op& op : ops) check_op(op);
  if (cache_.layers == 0) throw Error(Fault::kUnsupportedModel, "a model without attention");
}

void Plan::check_op(const Op& op) {
  for (const auto& weight : op.weights) widest_ = std::max(widest_, weight->view().k);
  const auto refuse = [&](const std::string& what) { throw Error(Fault::kUnsupportedModel, op.name + ": " + what); };
  if (op.kind == OpKind::kEmbed && op.weights.size() > 1) {
    const int64_t positions = op.weights[1]->view().n - op.position_offset;
    if (limits_.context > positions) {
      refuse("positions for a context of " + std::to_string(positions) + ", not of " + std::to_string(limits_.context));
    }
  }
  if (op.kind == OpKind::kExperts) {
    const int64_t assigned = limits_.rows * op.experts.used;
    most_experts_ = std::max(most_experts_, op.experts.count);
    most_assigned_ = std::max(most_assigned_, assigned);
    inner_floats_ = std::max(inner_floats_, assigned * op.weights[3]->view().k);
    mixed_floats_ = std::max(mixed_floats_, assigned * op.weights[0]->view().k);
  }
  if (op.kind == OpKind::kAttention) {
    const AttentionShape& shape = op.attention;
    if (cache_.layers > 0 && (shape.heads != attention_.heads || shape.kv_heads != attention_.kv_heads ||
                              shape.head_dim != attention_.head_dim)) {
      refuse("its heads differ from those of the layers before");
    }
    attention_ = shape;
    cache_ = {std::max<int64_t>(cache_.layers, shape.layer + 1), shape.kv_heads, shape.head_dim, limits_.cache};
  }
}

// Rotary tables, the ops, and for every round of the head its own and the one that follows.
std::size_t Plan::most_phases() const noexcept {
  const auto rounds = static_cast<std::size_t>(ceil_div(limits_.rows, kHeadRows));
  return 1 + (program_.ops().size() + rounds) * kPhases;
}

void Plan::lay_out_arena() {
  ArenaLayout layout;
  // First what lives for the whole step, then the values, which share what others no longer need.
  const int64_t rows = limits_.rows;
  logits_ = layout.take(kHeadRows * logits_stride());
  for (const Rope& rope : program_.ropes()) {
    const auto pairs = static_cast<int64_t>(rope.inverse_frequency.size());
    const int64_t cosine = layout.take(rows * pairs);
    ropes_.push_back({cosine, layout.take(rows * pairs)});
  }
  normed_ = layout.take(rows * round_up(widest_, kLanes));
  codes_ = layout.take(code_floats(rows * widest_));
  scale_ = layout.take(rows * ceil_div(widest_, kGroup));
  sum_ = layout.take(rows * ceil_div(widest_, kHalf));
  chosen_ = layout.take(most_assigned_);
  shares_ = layout.take(most_assigned_);
  inner_ = layout.take(inner_floats_);
  mixed_ = layout.take(mixed_floats_);
  assigned_ = layout.take(3 * most_assigned_ + 1);
  const int64_t tiled = tiles() ? rows : 0;
  tiles_of_rows_ = layout.take(tiled * round_up(widest_, kGroup) / 2);
  const WorkerShape shape{widest_, attention_.head_dim, most_experts_, tiled};
  for (int worker = 0; worker < team_.size(); ++worker) scratch_.push_back(take_scratch(layout, shape));
  parts_ = layout.take(most_shared_blocks() * block_rows() * attention_.heads * ceil_div(limits_.context, kSegment) *
                       attend_part_floats(attention_.head_dim));
  lay_out_values(layout);
  arena_ = Buffer(static_cast<std::size_t>(layout.end()) * sizeof(float));
  tiles_.resize(program_.ops().size());
  blocks_.reserve(static_cast<std::size_t>(rows));
  tile_queries_.reserve(static_cast<std::size_t>(tiled / kPageTokens));  // in runs of a page each they are most
}

// Places every value; one is given back after the op that reads it last.
void Plan::lay_out_values(ArenaLayout& layout) {
  const std::vector<Op>& ops = program_.ops();
  std::vector<std::size_t> last_use(program_.widths().size(), 0);
  for (std::size_t i = 0; i < ops.size(); ++i) {
    for (const ValueId id : ops[i].inputs) last_use[static_cast<std::size_t>(id)] = i;
    if (ops[i].residual != kNoValue) last_use[static_cast<std::size_t>(ops[i].residual)] = i;
  }
  offsets_.resize(last_use.size());
  const auto floats = [&](ValueId id) { return limits_.rows * padded_width(id); };
  for (std::size_t i = 0; i + 1 < ops.size(); ++i) {
    for (const ValueId id : ops[i].outputs) offsets_[static_cast<std::size_t>(id)] = layout.take(floats(id));
    for (std::size_t id = 0; id < last_use.size() && !limits_.keep_values; ++id) {
      const bool ends_here = last_use[id] == i && i > 0;
      if (ends_here) layout.give_back(offsets_[id], floats(static_cast<ValueId>(id)));
    }
  }
}

int64_t Plan::padded_width(ValueId id) const noexcept {
  return round_up(program_.widths()[static_cast<std::size_t>(id)], kLanes);
}

int64_t Plan::vocabulary() const noexcept { return program_.ops().back().weights[0]->view().n; }

int64_t Plan::logits_stride() const noexcept { return round_up(vocabulary(), kLanes); }

int64_t Plan::weight_bytes() const noexcept {
  int64_t bytes = 0;
  std::vector<const PackedMatrix*> seen;
  for (const Op& op : program_.ops()) {
    bytes += static_cast<int64_t>((op.norm.weight.size() + op.norm.bias.size()) * sizeof(float));
    for (const auto& bias : op.biases) bytes += static_cast<int64_t>(bias.size() * sizeof(float));
    for (const auto& weight : op.weights) {
      if (std::find(seen.begin(), seen.end(), weight.get()) != seen.end()) continue;  // a tied head
      seen.push_back(weight.get());
      bytes += weight->bytes();
    }
  }
  return bytes;
}

void Plan::prepare(const Step& step) noexcept {
  step_ = step;
  phases_.reset();
  const int64_t group = attention_.heads / attention_.kv_heads;
  // Few queries beside those for tile units: smaller tiles, so that every worker gets some.
  const int64_t share = (step.rows - step.tiled) * attention_.heads / (team_.size() * int64_t{2});
  head_chunk_ = std::clamp<int64_t>(share, 1, std::min<int64_t>(group, kTileRows));
  int64_t longest = 0;
  blocks_.clear();
  tile_queries_.clear();
  tiled_blocks_ = 0;
  brief_ = group <= kTileRows;
  for (int64_t i = 0; i < step.run_count; ++i) {
    const Run& run = step.runs[i];
    const bool tiled = run.row < step.tiled;
    brief_ = brief_ && run.rows == 1 && run.position < kBriefPositions;
    if (!tiled) longest = std::max(longest, run.position + run.rows);
    for (int64_t row = 0; row < run.rows; row += block_rows()) {
      blocks_.push_back({run.row + row, std::min(block_rows(), run.rows - row), run.position + row, run.pages});
    }
    if (!tiled) continue;
    tiled_blocks_ = static_cast<int64_t>(blocks_.size());
    for (int64_t row = 0; row < run.rows; row += kTileQueries) {
      const int64_t count = std::min<int64_t>(kTileQueries, run.rows - row);
      tile_queries_.push_back({run.row + row, count, run.position + row, run.pages});
    }
  }
  const bool few = static_cast<int64_t>(blocks_.size()) - tiled_blocks_ <= most_shared_blocks();
  segments_ = few && longest > kSegment ? ceil_div(longest, kSegment) : 0;
}

// An op is over when its last phase is.
void Plan::measure(std::size_t op, int64_t rows, int worker) noexcept {
  if (profile_ == nullptr || worker != 0) return;
  phases_.settle(worker);
  profile_->end(op, rows);
}

void Plan::run(int worker) noexcept {
  if (profile_ != nullptr && worker == 0) profile_->begin(step_);
  phases_.run(worker, step_.rows, [&](int64_t row) { rotate_tables(row); });
  const std::size_t body = program_.ops().size() - 1;
  for (std::size_t i = 0; i < body; ++i) {
    if (worker == 0 && step_.cancelled != nullptr && step_.cancelled(step_.cancel_context)) phases_.abandon();
    run_op(i, worker);
    measure(i, step_.rows, worker);
  }
}

void Plan::run_head(const int32_t* rows, int64_t count, int worker) noexcept {
  run_linears(program_.ops().back(), rows, count, at(logits_), worker);
  measure(program_.ops().size() - 1, count, worker);
}

}  // namespace cpuinfer
