// The table of kernel sets and the choice of one.
#include "kernels/dispatch.h"

#include <cstdlib>

#include "core/error.h"
#include "kernels/isa.h"

namespace cpuinfer {

namespace {

constexpr uint32_t kAvx512Set = kCpuAvx2 | kCpuAvx512 | kCpuAvx512Vnni;

// Best first.  A new instruction set is one file of kernels, its line in isa.h and one row here.
// clang-format off
constexpr KernelSet kTable[] = {
    // The amx row holds the functions of avx512_vnni: tile kernels are not part of this release.
    {"amx", kAvx512Set | kCpuAmxInt8,
     avx512_vnni::quantize, avx512_vnni::gemm_int4, avx512_vnni::gemm_int8, avx512_vnni::gemm_float,
     avx512_vnni::rms_norm, avx512_vnni::add, avx512_vnni::silu_mul, avx512_vnni::rope, avx512_vnni::to_half,
     avx512_vnni::attend},
    {"avx512_vnni", kAvx512Set,
     avx512_vnni::quantize, avx512_vnni::gemm_int4, avx512_vnni::gemm_int8, avx512_vnni::gemm_float,
     avx512_vnni::rms_norm, avx512_vnni::add, avx512_vnni::silu_mul, avx512_vnni::rope, avx512_vnni::to_half,
     avx512_vnni::attend},
    {"avx_vnni", kCpuAvx2 | kCpuAvxVnni,
     avx_vnni::quantize, avx_vnni::gemm_int4, avx_vnni::gemm_int8, avx_vnni::gemm_float,
     avx_vnni::rms_norm, avx_vnni::add, avx_vnni::silu_mul, avx_vnni::rope, avx_vnni::to_half,
     avx_vnni::attend},
    {"avx2", kCpuAvx2,
     avx2::quantize, avx2::gemm_int4, avx2::gemm_int8, avx2::gemm_float,
     avx2::rms_norm, avx2::add, avx2::silu_mul, avx2::rope, avx2::to_half,
     avx2::attend},
    {"scalar", kCpuBaseline,
     scalar::quantize, scalar::gemm_int4, scalar::gemm_int8, scalar::gemm_float,
     scalar::rms_norm, scalar::add, scalar::silu_mul, scalar::rope, scalar::to_half,
     scalar::attend},
};
// clang-format on

bool usable(const KernelSet& set, const CpuInfo& cpu) { return (set.needs & ~cpu.features) == 0; }

std::string names(bool all, const CpuInfo& cpu) {
  std::string list;
  for (const KernelSet& set : kTable) {
    if (all || usable(set, cpu)) list += (list.empty() ? "" : ", ") + std::string(set.name);
  }
  return list;
}

// "avx512, avx512_vnni" for the bits set.
std::string feature_list(uint32_t features) {
  std::string list;
  for (const CpuFeature feature : {kCpuAvx2, kCpuAvxVnni, kCpuAvx512, kCpuAvx512Vnni, kCpuAmxInt8}) {
    if (features & feature) list += (list.empty() ? "" : ", ") + std::string(feature_name(feature));
  }
  return list;
}

}  // namespace

std::span<const KernelSet> kernel_sets() { return kTable; }

std::string missing_for(const KernelSet& set, const CpuInfo& cpu) {
  const uint32_t lacking = set.needs & ~cpu.present;
  const uint32_t disabled = set.needs & cpu.present & ~cpu.features;
  std::string text;
  if (lacking) text = "this processor lacks " + feature_list(lacking);
  if (disabled) text += (text.empty() ? "" : "; ") + ("the operating system has not enabled " + feature_list(disabled));
  return text;
}

const KernelSet& select_kernels(std::string_view name, const char* environment, const CpuInfo& cpu) {
  std::string asked = "isa=";
  if (name.empty() && environment) {
    name = environment;
    asked = "CPUINFER_ISA=";
  }
  asked += name;
  for (const KernelSet& set : kTable) {
    if (name.empty() ? !usable(set, cpu) : name != set.name) continue;
    if (usable(set, cpu)) return set;
    throw Error(Fault::kUnsupportedCpu, asked + ": " + missing_for(set, cpu) + "; usable here: " + names(false, cpu));
  }
  throw Error(Fault::kUnsupportedCpu,
              asked + ": no such kernel set; there are " + names(true, cpu) + "; usable here: " + names(false, cpu));
}

const KernelSet& select_kernels(std::string_view name) {
  return select_kernels(name, std::getenv("CPUINFER_ISA"), cpu_info());
}

}  // namespace cpuinfer
