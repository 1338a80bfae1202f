// The kernel set for AVX-VNNI, the 256-bit dot products of processors without AVX-512.
#include "kernels/isa.h"
#include "kernels/vec_avx2.h"

namespace cpuinfer::avx_vnni {

namespace {
inline Bits dot_product(Bits sums, Bits w, Bits q) { return _mm256_dpbusd_avx_epi32(sums, w, q); }
}  // namespace

#include "kernels/vnni.inl.h"

}  // namespace cpuinfer::avx_vnni
