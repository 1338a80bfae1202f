// The body of the AVX-VNNI kernels with the AVX-512 encoding of its dot product, so that it runs on processors that
// have only that one.
#include "kernels/isa.h"
#include "kernels/vec_avx2.h"

namespace cpuinfer {
CPUINFER_DECLARE_KERNELS(avx_vnni_evex)
}

namespace cpuinfer::avx_vnni_evex {

namespace {
inline Bits dot_product(Bits sums, Bits w, Bits q) { return _mm256_dpbusd_epi32(sums, w, q); }
}  // namespace

#include "kernels/vnni.inl.h"

}  // namespace cpuinfer::avx_vnni_evex
