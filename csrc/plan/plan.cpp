// Checks a program once, lays out the arena, and walks the ops with all workers.
#include "plan/plan.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>

#include "core/error.h"
#include "core/rounding.h"

namespace cpuinfer {
namespace {

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

const char* kind_name(OpKind kind) {
  switch (kind) {
    case OpKind::kEmbed: return "embed";
    case OpKind::kLinears: return "linears";
    case OpKind::kGlu: return "glu";
    case OpKind::kAttention: return "attention";
  }
  return "?";
}

}  // namespace

Plan::Plan(const Program& program, const KernelSet& kernels, WorkerTeam& team, const PlanLimits& limits)
    : program_(program), kernels_(kernels), team_(team), limits_(limits) {
  check();
  lay_out_arena();
}

void Plan::check() {
  if (limits_.rows < 1 || limits_.context < 1) throw Error(Fault::kInvalid, "a plan needs at least 1 row and position");
  const std::vector<Op>& ops = program_.ops();
  if (ops.empty() || ops.back().kind != OpKind::kLinears || ops.back().weights.size() != 1 ||
      ops.back().residual != kNoValue) {
    throw Error(Fault::kUnsupportedModel, "the last op must be the output head: one linear without residual");
  }
  for (const Op& op : ops) {
    if (op.kind == OpKind::kLinears || op.kind == OpKind::kGlu) {
      widest_ = std::max(widest_, op.weights[0]->view().k);
    }
    if (op.kind != OpKind::kAttention) continue;
    const AttentionShape& shape = op.attention;
    if (cache_.layers > 0 && (shape.heads != attention_.heads || shape.kv_heads != attention_.kv_heads ||
                              shape.head_dim != attention_.head_dim)) {
      throw Error(Fault::kUnsupportedModel, op.name + ": its heads differ from those of the layers before");
    }
    attention_ = shape;
    cache_ = {std::max<int64_t>(cache_.layers, shape.layer + 1), shape.kv_heads, shape.head_dim};
  }
  if (cache_.layers == 0) throw Error(Fault::kUnsupportedModel, "a model without attention");
}

void Plan::lay_out_arena() {
  const std::vector<Op>& ops = program_.ops();
  std::vector<std::size_t> last_use(program_.values().size(), 0);
  for (std::size_t i = 0; i < ops.size(); ++i) {
    for (const ValueId id : ops[i].inputs) last_use[static_cast<std::size_t>(id)] = i;
    if (ops[i].residual != kNoValue) last_use[static_cast<std::size_t>(ops[i].residual)] = i;
  }
  ArenaLayout layout;
  // First what lives for the whole step, then the values, which share what others no longer need.
  const int64_t rows = limits_.rows;
  const int64_t pairs = static_cast<int64_t>(program_.rope().inverse_frequency.size());
  logits_ = layout.take(kHeadRows * logits_stride());
  cosine_ = layout.take(rows * pairs);
  sine_ = layout.take(rows * pairs);
  normed_ = layout.take(rows * round_up(widest_, kLanes));
  codes_ = layout.take(rows * widest_ / static_cast<int64_t>(sizeof(float)) + kFloatsPerLine);
  scale_ = layout.take(rows * widest_ / kGroup + kFloatsPerLine);
  sum_ = layout.take(rows * widest_ / kHalf + kFloatsPerLine);
  for (int worker = 0; worker < team_.size(); ++worker) {
    scratch_.push_back({layout.take(kTileRows * round_up(widest_, kLanes)),
                        layout.take(kTileRows * kPanelsPerItem * kLanes),
                        layout.take(kTileRows * round_up(limits_.context, kLanes)),
                        layout.take(widest_ / static_cast<int64_t>(sizeof(float)) + kFloatsPerLine),
                        layout.take(widest_ / kGroup + kFloatsPerLine), layout.take(widest_ / kHalf + kFloatsPerLine)});
  }
  offsets_.resize(program_.values().size());
  const auto floats = [&](ValueId id) { return limits_.rows * padded_width(id); };
  for (std::size_t i = 0; i + 1 < ops.size(); ++i) {
    for (const ValueId id : ops[i].outputs) offsets_[static_cast<std::size_t>(id)] = layout.take(floats(id));
    for (std::size_t id = 0; id < last_use.size() && !limits_.keep_values; ++id) {
      const bool ends_here = last_use[id] == i && i > 0;
      if (ends_here) layout.give_back(offsets_[id], floats(static_cast<ValueId>(id)));
    }
  }
  arena_ = Buffer(static_cast<std::size_t>(layout.end()) * sizeof(float));
  tickets_ = std::vector<Ticket>(ops.size() * 2);
  seconds_.resize(ops.size());
  blocks_.reserve(static_cast<std::size_t>(rows));
}

int64_t Plan::padded_width(ValueId id) const noexcept {
  return round_up(program_.values()[static_cast<std::size_t>(id)].width, kLanes);
}

int64_t Plan::vocabulary() const noexcept { return program_.ops().back().weights[0]->view().n; }

int64_t Plan::logits_stride() const noexcept { return round_up(vocabulary(), kLanes); }

int64_t Plan::weight_bytes() const noexcept {
  int64_t bytes = 0;
  std::vector<const PackedMatrix*> seen;
  for (const Op& op : program_.ops()) {
    bytes += static_cast<int64_t>(op.norm.weight.size() * sizeof(float));
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
  stop_after_.store(program_.ops().size(), std::memory_order_relaxed);
  for (Ticket& ticket : tickets_) ticket.value.store(0, std::memory_order_relaxed);
  const int64_t group = attention_.heads / attention_.kv_heads;
  const int64_t block_rows = std::max<int64_t>(1, kTileRows / group);
  // Few queries: smaller tiles, so that every worker gets some.
  const int64_t share = step.rows * attention_.heads / (team_.size() * int64_t{2});
  head_chunk_ = std::clamp<int64_t>(share, 1, std::min<int64_t>(group, kTileRows));
  blocks_.clear();
  for (int64_t i = 0; i < step.run_count; ++i) {
    const Run& run = step.runs[i];
    for (int64_t row = 0; row < run.rows; row += block_rows) {
      blocks_.push_back({run.row + row, std::min(block_rows, run.rows - row), run.position + row, run.pages});
    }
  }
}

bool Plan::run(int worker) noexcept {
  rotate_tables(worker);
  const std::size_t body = program_.ops().size() - 1;
  for (std::size_t i = 0; i < body; ++i) {
    const auto start = std::chrono::steady_clock::now();
    if (worker == 0 && step_.cancelled != nullptr && step_.cancelled(step_.cancel_context)) {
      stop_after_.store(i, std::memory_order_relaxed);
    }
    run_op(i, worker);
    team_.barrier();
    if (worker == 0) seconds_[i] = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (stop_after_.load(std::memory_order_relaxed) <= i) return false;
  }
  return true;
}

void Plan::run_head(const int32_t* rows, int64_t count, int worker) noexcept {
  const std::size_t index = program_.ops().size() - 1;
  const auto start = std::chrono::steady_clock::now();
  run_linear_op(program_.ops()[index], index, rows, count, at(logits_), worker);
  team_.barrier();
  if (worker == 0) {
    for (std::size_t phase = 0; phase < 2; ++phase) {
      tickets_[index * 2 + phase].value.store(0, std::memory_order_relaxed);
    }
    seconds_[index] = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  team_.barrier();
}

std::string Plan::dump() const {
  std::string text;
  for (std::size_t i = 0; i < program_.ops().size(); ++i) {
    const Op& op = program_.ops()[i];
    int64_t bytes = 0;
    std::string shapes;
    for (const auto& weight : op.weights) {
      const Weights& w = weight->view();
      shapes +=
          " " + std::string(encoding_name(w.encoding)) + "[" + std::to_string(w.n) + "," + std::to_string(w.k) + "]";
      bytes += weight->bytes();
    }
    char line[160];
    std::snprintf(line, sizeof line, "%-36s %-9s %12lld bytes %10.1f us", op.name.c_str(), kind_name(op.kind),
                  static_cast<long long>(bytes), seconds_[i] * 1e6);
    text += line + shapes + "\n";
  }
  return text;
}

}  // namespace cpuinfer
