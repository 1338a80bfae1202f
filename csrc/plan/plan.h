// The executor: a program bound to a kernel set, with one arena laid out at load, replayed by all workers for every
// step.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/buffer.h"
#include "core/worker_team.h"
#include "kernels/kernels.h"
#include "plan/cache_shape.h"
#include "plan/phases.h"
#include "plan/profile.h"
#include "plan/program.h"
#include "plan/step.h"
#include "plan/worker_room.h"

namespace cpuinfer {

struct PlanLimits {
  int64_t rows = 512;      // most rows in a step
  int64_t context = 4096;  // most positions of a sequence
  CacheType cache = CacheType::kF16;
  bool keep_values = false;  // give every value memory of its own, so that all can be read after a step (for tests)
  bool profile = false;      // measure every op
  bool tiles = false;        // whole pages of a prompt on tile units, where the kernel set has them
};

constexpr int64_t kHeadRows = 16;  // rows of logits computed at once

class Plan {
 public:
  // The last op must be linears with one weight: the head, which runs only on the rows asked for.  Throws
  // Error(kUnsupportedModel) if it is not, if there is no attention, or if attention ops differ in shape.
  Plan(const Program& program, const KernelSet& kernels, WorkerTeam& team, const PlanLimits& limits);

  // Called by one thread before the workers run a step.
  void prepare(const Step& step) noexcept;
  // Called by every worker: all ops but the head.
  void run(int worker) noexcept;
  // Called by every worker after run: logits of count <= kHeadRows rows of the step, for the next phase to read.
  void run_head(const int32_t* rows, int64_t count, int worker) noexcept;
  // For what follows the head, at most one phase after each; abandoned once the step is cancelled.
  Phases& phases() noexcept { return phases_; }
  // Called by every worker after that phase.
  void end_outputs(int64_t count, int worker) noexcept { measure(program_.ops().size(), count, worker); }

  // fp32 [kHeadRows][logits_stride]; the first vocabulary() of each row count.
  const float* logits(int64_t index) const noexcept { return arena_.as<float>() + logits_ + index * logits_stride(); }
  int64_t logits_stride() const noexcept;
  int64_t vocabulary() const noexcept;
  // A value of the last step, fp32 [rows][padded_width]; all of them are there only with keep_values.
  const float* value(ValueId id) const noexcept { return arena_.as<float>() + offsets_[static_cast<std::size_t>(id)]; }
  int64_t padded_width(ValueId id) const noexcept;

  const Program& program() const noexcept { return program_; }
  CacheShape cache_shape() const noexcept { return cache_; }
  bool tiles() const noexcept { return limits_.tiles && kernels_.tiles != nullptr; }
  int64_t weight_bytes() const noexcept;
  int64_t arena_bytes() const noexcept { return static_cast<int64_t>(arena_.bytes()); }
  const Profile* profile() const noexcept { return profile_.get(); }  // null unless asked for

 private:
  struct RowBlock {  // rows of one sequence whose queries share a tile
    int64_t row, rows, position;
    uint8_t* const* pages;
  };
  // An op's input as its kernels read it: quantised tiles of kTileRows rows, and floats for float weights.
  struct Input {
    int8_t* codes;
    float* scale;
    int32_t* sum;
    const float* x;
    int64_t ldx;
  };
  struct Reading {  // which rows of its input an op takes, and each in which order; null: as they come
    const int32_t* rows;
    const int32_t* order;
    int64_t first = 0;  // row, without `rows`
  };
  struct Cut {  // of a linear op, into items: chunks of the panels of all its matrices times blocks of rows
    int64_t chunks, row_blocks;
  };
  struct Piece {  // of one matrix
    std::size_t weight;
    int64_t begin, end;  // panels
    int64_t row, row_end;
  };
  struct ExpertItem {  // a tile of rows of one expert, neighbours in the order of assignments, times some panels
    int64_t expert, first, count;
    int64_t begin, end;  // panels, of those of all experts
    int64_t output;      // of the expert, the first of these panels
    bool fresh;          // the worker had other rows before
  };
  struct Assignments {  // of rows to experts
    int32_t* order;     // those of the same expert together
    int32_t* place;     // of each in that order
    int32_t* starts;    // of each tile in that order, and the end of the last
  };
  static constexpr int64_t kItemBytes = 256 << 10;  // of weights: for one row some microseconds
  static constexpr int64_t kBriefPositions = 256;
  static constexpr int64_t kSharedItems = 2;  // for each worker: with fewer heads to attend, segments are items
  static constexpr std::size_t kPhases = 5;   // of an op, at most

  void check();
  void check_op(const Op& op);
  void lay_out_arena();
  void lay_out_values(ArenaLayout& layout);
  std::size_t most_phases() const noexcept;
  void measure(std::size_t op, int64_t rows, int worker) noexcept;
  void run_op(std::size_t index, int worker) noexcept;
  void run_embed(const Op& op, int worker) noexcept;
  void run_normalize(const Op& op, int worker) noexcept;
  void run_gated(const Op& op, int worker) noexcept;
  void add_residual(const Op& op, int64_t row, int64_t begin, int64_t count, float* y) noexcept;
  void normalize(const Norm& norm, const float* x, int64_t width, float* y) noexcept;

  void run_linears(const Op& op, const int32_t* row_map, int64_t rows, float* head_out, int worker) noexcept;
  void run_glu(const Op& op, int worker) noexcept;
  // Runs body(piece, input) for some pieces of a linear op, as phases share them out.
  template <typename Body>
  void each_piece(const Op& op, const Reading& reading, int64_t rows, int worker, const Body& body) noexcept;
  Input read_rows(const Op& op, const Reading& reading, int64_t rows, int worker) noexcept;
  Input own_input(const Op& op, int worker) noexcept;
  static Reading reading_of(const Op& op) noexcept;
  static bool rewrites(const Op& op, const Reading& reading) noexcept;
  void read_tile(const Op& op, const Reading& reading, int64_t row, int rows, const Input& in, float* floats,
                 int worker) noexcept;
  void read_row(const Op& op, const int32_t* order, const float* x, float* out, int worker) noexcept;
  QuantizedRows quantized_tile(const Input& in, int64_t k, int64_t row, int rows) const noexcept;
  Cut cut(const Op& op, int64_t rows) const noexcept;
  static int64_t count_panels(const Op& op) noexcept;
  template <typename Body>
  static void each_part(const Op& op, const Cut& cut, int64_t rows, int64_t item, const Body& body) noexcept;
  // Runs body(weight, begin, end) for the panels of each matrix among panels [begin, end) of all.
  template <typename Body>
  static void each_matrix(const Op& op, int64_t begin, int64_t end, const Body& body) noexcept {
    for (std::size_t weight = 0; end > 0; ++weight) {
      const int64_t own = op.weights[weight]->panels();
      if (begin < own) body(weight, begin, std::min(end, own));
      begin = std::max<int64_t>(0, begin - own);
      end -= own;
    }
  }
  void finish_linear(const Op& op, std::size_t weight, int64_t row, int64_t first, int64_t width, float* y) noexcept;
  void finish_glu(const Op& op, int64_t first, int64_t lanes, float* gate, float* y) noexcept;

  // On tile units.  Returns how many rows are done: all tiled ones, or none.
  int64_t run_tiles(const Op& op, int worker) noexcept;
  void read_tiles(const Op& op, int worker) noexcept;
  struct TileItem {
    int64_t row, row_end, panel, panel_end;
  };
  void multiply_tiles(const PackedMatrix& weight, const TileItem& item, float* y) const noexcept;
  void run_tiled_linears(const Op& op, const TileItem& item, int worker) noexcept;
  void run_tiled_glu(const Op& op, const TileItem& item, int worker) noexcept;
  void attend_tiles(const Op& op, int worker) noexcept;
  void multiply(const Weights& w, int64_t begin, int64_t end, const Input& in, int64_t row, int64_t count, float* y,
                int64_t ldy) const noexcept;

  void run_experts(const Op& op, std::size_t index, int worker) noexcept;
  void route_rows(const Op& op, int worker) noexcept;
  void route(const Op& op, int64_t row, int rows, int worker) noexcept;
  template <typename Body>
  void each_expert_item(const Op& op, const PackedMatrix& weight, int64_t tiles, int worker, const Body& body) noexcept;
  void run_inner(const Op& op, const ExpertItem& item, int worker) noexcept;
  void run_outer(const Op& op, const ExpertItem& item, int worker) noexcept;
  void mix_experts(const Op& op, int64_t row) noexcept;
  Assignments assignments() noexcept;
  int64_t sort_assignments(const Op& op) noexcept;

  void run_attention(const Op& op, int worker) noexcept;
  void store_key_and_value(const Op& op, int64_t row, int64_t position, uint8_t* const* pages, int64_t head,
                           int worker) noexcept;
  struct HeadRange {  // query heads of one key-value head
    int64_t kv_head, first, count;
  };
  void attend_segments(const Op& op, int worker) noexcept;
  void merge_segments(const Op& op, int64_t block, int64_t head, int worker) noexcept;
  Attend attend_task(const Op& op, const RowBlock& b, const HeadRange& heads, int worker) noexcept;
  void attend_block(const Op& op, int64_t block, const HeadRange& heads, int worker) noexcept;
  int64_t first_seen(const Op& op, int64_t limit) const noexcept;
  int64_t most_shared_blocks() const noexcept;
  int64_t block_rows() const noexcept {
    return std::max<int64_t>(1, kTileRows * attention_.kv_heads / attention_.heads);
  }
  float* part_at(int64_t block, int64_t row, int64_t head, int64_t segment) noexcept;
  void rotate_tables(int64_t row) noexcept;

  float* at(int64_t offset) noexcept { return arena_.as<float>() + offset; }
  float* mutable_value(ValueId id) noexcept { return at(offsets_[static_cast<std::size_t>(id)]); }
  float* row_of(ValueId id, int64_t row) noexcept { return mutable_value(id) + row * padded_width(id); }
  Scratch& own(int worker) noexcept { return scratch_[static_cast<std::size_t>(worker)]; }

  struct RopeTables {  // offsets of fp32 [rows][pairs]
    int64_t cosine, sine;
  };

  const Program& program_;
  const KernelSet& kernels_;
  WorkerTeam& team_;
  PlanLimits limits_;
  CacheShape cache_;
  AttentionShape attention_;
  int64_t widest_ = 0;                                                                  // inputs of any linear
  int64_t most_experts_ = 0, most_assigned_ = 0, inner_floats_ = 0, mixed_floats_ = 0;  // of any mixture

  Buffer arena_;
  std::vector<int64_t> offsets_;  // of each value, in floats
  int64_t logits_ = 0, codes_ = 0, scale_ = 0, sum_ = 0, normed_ = 0;
  int64_t tiles_of_rows_ = 0;  // see TileProduct::x
  // Of mixtures: experts and shares of each row [rows][used]; each assignment's inner values and output.
  int64_t chosen_ = 0, shares_ = 0, inner_ = 0, mixed_ = 0;
  int64_t assigned_ = 0;        // int32 [3][most_assigned_], and one more: see Assignments
  std::vector<int64_t> tiles_;  // [op]: of a mixture's assignments in this step
  std::vector<RopeTables> ropes_;
  std::vector<Scratch> scratch_;
  Phases phases_;
  std::unique_ptr<Profile> profile_;

  Step step_;
  std::vector<RowBlock> blocks_;
  int64_t tiled_blocks_ = 0;            // of them the first
  std::vector<RowBlock> tile_queries_;  // tiled rows by kTileQueries
  int64_t head_chunk_ = 1;              // query heads that share a tile
  int64_t parts_ = 0;                   // of segments: fp32 [blocks][rows of a block][heads][segments of the context]
  int64_t segments_ = 0;                // items of each head of each block, where workers share out segments; else 0
  bool brief_ = false;  // one query a sequence, and few positions: one phase is faster than two evenly shared
};

}  // namespace cpuinfer
