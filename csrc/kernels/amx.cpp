// The tile units (AMX, bf16): products of many rows, and attention of many queries, beside the kernels of AVX-512.
//
// A worker's item is some panels times some rows.  Of kTileInputs inputs, two panels lie as tiles in the first cache,
// while the rows' tiles and the sums lie in the second.  A sweep of them is four products for four tile loads; a
// product takes 16 cycles, a load 8.  In between, the next two panels are unpacked: that takes as long as the products
// of 100 rows, and by other units.
#include <type_traits>

#include "kernels/isa.h"
#include "kernels/tiles.h"
#include "kernels/vec_avx512.h"

namespace cpuinfer::amx {

namespace {

constexpr int kLineHalves = 32;  // bf16 numbers of a tile's row

inline int64_t round_up_to_lanes(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }
inline const uint16_t* halves(const uint8_t* p) { return reinterpret_cast<const uint16_t*>(p); }

}  // namespace

// clang-format off
#include "kernels/exponential.inl.h"
#include "kernels/spread.inl.h"
#include "kernels/unpack.inl.h"
#include "kernels/grids.inl.h"
#include "kernels/tile_unpack.inl.h"
#include "kernels/tile_product.inl.h"
#include "kernels/tile_cache.inl.h"
#include "kernels/tile_attend.inl.h"
// clang-format on

}  // namespace cpuinfer::amx
