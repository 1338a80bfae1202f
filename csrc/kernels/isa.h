// The functions each instruction set's file defines, in a namespace of its own; dispatch.cpp names them in its table.
#pragma once

#include "kernels/blocks.h"
#include "kernels/codebooks.h"
#include "kernels/kernels.h"

#define CPUINFER_DECLARE_KERNELS(isa)                                                              \
  namespace isa {                                                                                  \
  void quantize(const float* x, int64_t ldx, int64_t k, const QuantizedRows& q);                   \
  void gemm(const Gemm& g);                                                                        \
  void rms_norm(const float* x, const float* weight, int64_t n, float eps, float* y);              \
  void add(const float* x, int64_t n, float* y);                                                   \
  void layer_norm(const float* x, const float* w, const float* b, int64_t n, float eps, float* y); \
  void multiply(const float* x, int64_t n, float* y);                                              \
  void activate(Activation activation, int64_t n, float* y);                                       \
  void softcap(float cap, int64_t n, float* y);                                                    \
  void rope(float* head, const float* cosine, const float* sine, int64_t pairs, bool interleaved); \
  void to_half(const float* x, int64_t n, uint16_t* y);                                            \
  void keep(const Keep& k);                                                                        \
  void attend(const Attend& a);                                                                    \
  void merge(const MergeParts& m);                                                                 \
  }

// The same as a list, in the order of KernelSet's members.
#define CPUINFER_KERNELS(isa)                                                                                     \
  isa::quantize, isa::gemm, isa::rms_norm, isa::layer_norm, isa::add, isa::multiply, isa::activate, isa::softcap, \
      isa::rope, isa::to_half, isa::keep, isa::attend, isa::merge

namespace cpuinfer {
CPUINFER_DECLARE_KERNELS(avx512_vnni)
CPUINFER_DECLARE_KERNELS(avx_vnni)
CPUINFER_DECLARE_KERNELS(avx2)
CPUINFER_DECLARE_KERNELS(scalar)

// The tile units', beside the kernels of AVX-512.
namespace amx {
void to_tiles(const float* x, int64_t k, int64_t rows, int64_t row, uint16_t* tiles);
void multiply_tiles(const TileProduct& p);
void attend_tiles(const TileAttend& a);
inline constexpr TileKernels kTiles{to_tiles, multiply_tiles, attend_tiles};
}  // namespace amx
}  // namespace cpuinfer
