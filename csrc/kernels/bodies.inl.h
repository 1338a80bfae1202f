// The functions of a kernel set, in the order their parts need each other.
// Included inside the set's namespace, after its products: NibbleDot, ByteDot and SmallByteDot of a row, NibbleRows,
// SixBitRows, SmallByteRows and ByteRows of several.

// clang-format off
#include "kernels/exponential.inl.h"
#include "kernels/floats.inl.h"
#include "kernels/gemm.inl.h"
#include "kernels/unpack.inl.h"
#include "kernels/grids.inl.h"
#include "kernels/rows.inl.h"
#include "kernels/staged.inl.h"
#include "kernels/spread.inl.h"
#include "kernels/attend_half.inl.h"
#include "kernels/attend_codes.inl.h"
#include "kernels/attend.inl.h"
// clang-format on
