// What this processor can do and the operating system lets it do: CPUID, XCR0 and the AMX permission, asked once.
#pragma once

#include <cstdint>
#include <string>

namespace cpuinfer {

enum CpuFeature : uint32_t {
  kCpuBaseline = 0,
  kCpuAvx2 = 1u << 0,     // AVX2, FMA and F16C together: every processor with the first has the others
  kCpuAvxVnni = 1u << 1,  // VEX-encoded dot products
  kCpuAvx512 = 1u << 2,   // F, BW, VL and DQ together
  kCpuAvx512Vnni = 1u << 3,
  kCpuAmxInt8 = 1u << 4,  // tiles and int8 products, with permission granted to this process
};

struct CpuInfo {
  uint32_t features = 0;  // usable: the processor has it and the operating system saves its registers
  uint32_t present = 0;   // the processor has it, whatever the operating system says
  std::string brand;      // "AMD EPYC ..."
};

// Detected at the first call; later calls return the same object.
const CpuInfo& cpu_info();

// For messages: "avx2", "avx_vnni", ...
const char* feature_name(CpuFeature feature);

}  // namespace cpuinfer
