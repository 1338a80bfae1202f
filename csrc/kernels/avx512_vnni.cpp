// The kernel set for AVX-512 with VNNI: one register holds a panel's 16 rows of four codes.
#include "kernels/isa.h"
#include "kernels/vec_avx512.h"

namespace cpuinfer::avx512_vnni {

namespace {
inline Bits dot_product(Bits sums, Bits w, Bits q) { return _mm512_dpbusd_epi32(sums, w, q); }
}  // namespace

#include "kernels/vnni.inl.h"

}  // namespace cpuinfer::avx512_vnni
