// What each worker of a plan has for itself in the arena, and how many bytes that is.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/rounding.h"
#include "kernels/kernels.h"
#include "plan/arena_layout.h"

namespace cpuinfer {

constexpr int64_t kPanelsPerItem = 8;
// Of an item on tile units: sums, and kTileInputs of its rows, take half a MiB of the second cache.
constexpr int64_t kTilePanels = 16, kTileSweep = 256;
constexpr int64_t kTileStride = (kTilePanels + 1) * kLanes;  // no power of two, so that rows share no cache set

struct WorkerShape {
  int64_t widest;  // inputs of any linear
  int64_t head_dim;
  int64_t experts;     // of any mixture
  int64_t tiled_rows;  // most in a step; 0 without tile units
};

struct Scratch {              // offsets into the arena, in floats
  int64_t normed;             // [kTileRows][widest input]
  int64_t unordered;          // [widest input]: a row before its inputs are put into another order
  int64_t gate;               // [kMostRows][kPanelsPerItem * 16]: of glu
  int64_t attend;             // see Attend::scratch
  int64_t codes, scale, sum;  // a quantised tile
  int64_t router;             // [kTileRows][experts]
  int64_t tile_sums;          // [kTileSweep rows][kTileStride]
  int64_t tile_attend;        // TileAttend::room
};

constexpr int64_t code_floats(int64_t codes) { return ceil_div(codes, int64_t{sizeof(float)}); }

inline Scratch take_scratch(ArenaLayout& layout, const WorkerShape& shape) {
  Scratch scratch{};
  scratch.normed = layout.take(kTileRows * round_up(shape.widest, kLanes));
  scratch.unordered = layout.take(shape.widest);
  scratch.gate = layout.take(kMostRows * kPanelsPerItem * kLanes);
  scratch.attend = layout.take(attend_scratch_floats(shape.head_dim));
  scratch.codes = layout.take(code_floats(kTileRows * shape.widest));
  scratch.scale = layout.take(kTileRows * ceil_div(shape.widest, kGroup));
  scratch.sum = layout.take(kTileRows * ceil_div(shape.widest, kHalf));
  scratch.router = layout.take(kTileRows * round_up(shape.experts, kLanes));
  scratch.tile_sums = layout.take(std::min(shape.tiled_rows, kTileSweep) * kTileStride);
  scratch.tile_attend = layout.take(shape.tiled_rows > 0 ? tile_room(shape.head_dim) / int64_t{sizeof(float)} : 0);
  return scratch;
}

inline int64_t worker_bytes(const WorkerShape& shape) {
  ArenaLayout layout;
  take_scratch(layout, shape);
  return layout.end() * int64_t{sizeof(float)};
}

}  // namespace cpuinfer
