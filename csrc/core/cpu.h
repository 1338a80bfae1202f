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
  kCpuAvx512Bf16 = 1u << 4,
  kCpuAmxBf16 = 1u << 5,  // tiles and bf16 products, with permission granted to this process
};

inline constexpr CpuFeature kCpuFeatures[] = {kCpuAvx2,       kCpuAvxVnni,    kCpuAvx512,
                                              kCpuAvx512Vnni, kCpuAvx512Bf16, kCpuAmxBf16};

struct CpuInfo {
  uint32_t features = 0;  // usable: the processor has it and the operating system saves its registers
  uint32_t present = 0;   // the processor has it, whatever the operating system says
  std::string brand;      // "AMD EPYC ..."
};

// What the processor and the operating system answer, raw.
struct CpuRegisters {
  uint32_t leaf1_ecx = 0;
  uint32_t leaf7_ebx = 0, leaf7_ecx = 0, leaf7_edx = 0;
  uint32_t leaf7_1_eax = 0;
  uint64_t xcr0 = 0;           // registers saved at a task switch; 0 without OSXSAVE
  bool amx_permitted = false;  // arch_prctl granted the tile registers
};

// The features those answers mean; the brand stays empty.
CpuInfo decide_features(const CpuRegisters& registers);

// Detected at the first call; later calls return the same object.
const CpuInfo& cpu_info();

// For messages: "avx2", "avx_vnni", ...
const char* feature_name(CpuFeature feature);

}  // namespace cpuinfer
