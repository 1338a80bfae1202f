// Which kernel set runs: the table, what is usable on this machine, and the forced choice of CPUINFER_ISA.
#pragma once

#include <span>
#include <string_view>

#include "kernels/kernels.h"

namespace cpuinfer {

// Every kernel set in the binary, best first; usable here or not.
std::span<const KernelSet> kernel_sets();

// The best usable set, or the one named (from CPUINFER_ISA or a caller).  An unknown name, or one this machine cannot
// run, throws Error(kUnsupportedCpu) naming what is missing and what would be right.
const KernelSet& select_kernels(std::string_view name = {});

}  // namespace cpuinfer
