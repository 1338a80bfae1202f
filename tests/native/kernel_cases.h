// What the kernel tests share: the sets to compare with scalar, awkward numbers, and equality of bits.
#pragma once

#include <bit>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "core/cpu.h"
#include "guarded.h"
#include "kernels/dispatch.h"
#include "kernels/isa.h"

namespace cpuinfer {

CPUINFER_DECLARE_KERNELS(avx_vnni_evex)

inline const KernelSet& scalar_set() { return kernel_sets().back(); }

// Every set this machine can run but scalar itself, and of those that share their kernels the first; says which it
// leaves out.
inline const std::vector<KernelSet>& sets_under_test() {
  static const std::vector<KernelSet> sets = [] {
    std::vector<KernelSet> all(kernel_sets().begin(), kernel_sets().end() - 1);
    namespace evex = avx_vnni_evex;
    all.push_back({"avx_vnni (AVX-512 encoding)", kCpuAvx2 | kCpuAvx512 | kCpuAvx512Vnni, CPUINFER_KERNELS(evex)});
    std::vector<KernelSet> usable;
    for (const KernelSet& set : all) {
      std::string missing = missing_for(set, cpu_info());
      for (const KernelSet& other : usable) {
        if (other.gemm == set.gemm) missing = "its kernels are those of " + std::string(other.name);
      }
      std::printf("%s %s%s%s\n", missing.empty() ? "testing" : "skipped", set.name, missing.empty() ? "" : ": ",
                  missing.c_str());
      if (missing.empty()) usable.push_back(set);
    }
    return usable;
  }();
  return sets;
}

// A position's scratch value: what no kernel may leave where it must write, nor touch where it must not.
inline float poison() { return std::bit_cast<float>(0x7fc0beefu); }

// Equal bits, or both NaN: which NaN an operation on two of them keeps is the compiler's choice of operand order.
inline bool same(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b) || (std::isnan(a) && std::isnan(b));
}
inline bool untouched(float a) { return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(poison()); }

inline std::mt19937& random_bits() {
  static std::mt19937 engine(20240229);
  return engine;
}
inline float normal(float deviation = 1.0f) {
  std::normal_distribution<float> distribution(0.0f, deviation);
  return distribution(random_bits());
}
inline std::vector<float> normals(std::size_t count, float deviation = 1.0f) {
  std::vector<float> values(count);
  for (float& value : values) value = normal(deviation);
  return values;
}

// Compares two results element by element; one message for the first difference.
inline void check_same(const float* a, const float* b, std::size_t count, const std::string& what) {
  for (std::size_t i = 0; i < count; ++i) {
    if (same(a[i], b[i])) continue;
    ++check::failures();
    std::fprintf(stderr, "%s: element %zu: %a, expected %a\n", what.c_str(), i, static_cast<double>(a[i]),
                 static_cast<double>(b[i]));
    return;
  }
}

}  // namespace cpuinfer
