// What each op has to read and to compute, beside the time it took.
#include "plan/profile.h"

#include <algorithm>

namespace cpuinfer {

Profile::Profile(const Program& program, CacheShape cache)
    : program_(program), cache_(cache), times_(program.ops().size() + 1) {}

void Profile::begin(const Step& step) noexcept {
  step_ = step;
  stage_ = step.rows == step.run_count ? kDecoding : kPrompt;
  last_ = std::chrono::steady_clock::now();
}

void Profile::end(std::size_t op, int64_t rows) noexcept {
  const auto now = std::chrono::steady_clock::now();
  Time& time = times_[op][stage_];
  time.steps += 1;
  time.rows += rows;
  time.seconds += std::chrono::duration<double>(now - last_).count();
  last_ = now;
  if (op < program_.ops().size()) count(program_.ops()[op], rows, time);
}

void Profile::count(const Op& op, int64_t rows, Time& time) const noexcept {
  switch (op.kind) {
    case OpKind::kEmbed:
      for (const auto& table : op.weights) {
        time.bytes += static_cast<double>(table->bytes() * rows) / static_cast<double>(table->view().n);
      }
      return;
    case OpKind::kLinears:
    case OpKind::kGlu:
      for (const auto& weight : op.weights) {
        time.bytes += static_cast<double>(weight->bytes());
        time.operations += 2.0 * static_cast<double>(weight->view().n * weight->view().k * rows);
      }
      return;
    case OpKind::kExperts: {
      const double used = static_cast<double>(op.experts.used * rows), all = static_cast<double>(op.experts.count);
      for (std::size_t i = 0; i < op.weights.size(); ++i) {
        const auto& weight = *op.weights[i];
        const double products = static_cast<double>(weight.view().n * weight.view().k);
        const bool router = i == 0;  // the others hold the matrices of all experts
        time.bytes += static_cast<double>(weight.bytes()) * (router ? 1 : std::min(1.0, used / all));
        time.operations += 2.0 * products * (router ? static_cast<double>(rows) : used / all);
      }
      return;
    }
    case OpKind::kAttention: return count_attention(op.attention, time);
    case OpKind::kNormalize:
    case OpKind::kGated: return;
  }
}

void Profile::count_attention(const AttentionShape& shape, Time& time) const noexcept {
  const double position = static_cast<double>(cache_.kv_heads * cache_.head_bytes()) / kPageTokens;  // bytes
  for (int64_t i = 0; i < step_.run_count; ++i) {
    const Run& run = step_.runs[i];
    const int64_t seen = run.position + run.rows;
    const int64_t reach = shape.window > 0 ? std::min(seen, shape.window + run.rows - 1) : seen;
    time.bytes += position * static_cast<double>(reach);
    for (int64_t row = 0; row < run.rows; ++row) {
      const int64_t positions = run.position + row + 1;
      const int64_t visible = shape.window > 0 ? std::min(positions, shape.window) : positions;
      time.operations += 4.0 * static_cast<double>(shape.heads * shape.head_dim * visible);
    }
  }
}

}  // namespace cpuinfer
