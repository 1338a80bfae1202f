// The table of kernel sets and the choice of one.
#include "kernels/dispatch.h"

#include <cstdlib>

#include "core/error.h"
#include "kernels/isa.h"

namespace cpuinfer {

namespace {

constexpr uint32_t kAvx512Set = kCpuAvx2 | kCpuAvx512 | kCpuAvx512Vnni;

// Best first.  A new instruction set is one file of kernels, its line in isa.h and one row here.
constexpr KernelSet kTable[] = {
    {"amx", kAvx512Set | kCpuAvx512Bf16 | kCpuAmxBf16, CPUINFER_KERNELS(avx512_vnni), &amx::kTiles},
    {"avx512_vnni", kAvx512Set, CPUINFER_KERNELS(avx512_vnni)},
    {"avx_vnni", kCpuAvx2 | kCpuAvxVnni, CPUINFER_KERNELS(avx_vnni)},
    {"avx2", kCpuAvx2, CPUINFER_KERNELS(avx2)},
    {"scalar", kCpuBaseline, CPUINFER_KERNELS(scalar)},
};

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
  for (const CpuFeature feature : kCpuFeatures) {
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
