// Which kernel set runs: the table, what is usable on this machine, and the forced choice of CPUINFER_ISA.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "core/cpu.h"
#include "kernels/kernels.h"

namespace cpuinfer {

// Every kernel set in the binary, best first; usable here or not.
std::span<const KernelSet> kernel_sets();

// The set named, else the one CPUINFER_ISA names, else the best usable one.  An unknown name, or one this machine
// cannot run, throws Error(kUnsupportedCpu) naming what is missing and what would be right.
const KernelSet& select_kernels(std::string_view name = {});

// The same as a function of its inputs; an environment of null or "" names nothing.
const KernelSet& select_kernels(std::string_view name, const char* environment, const CpuInfo& cpu);

// Why the set cannot run on such a machine: "this processor lacks avx512_vnni"; empty if it can.
std::string missing_for(const KernelSet& set, const CpuInfo& cpu);

}  // namespace cpuinfer
