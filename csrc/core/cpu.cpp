// Asks CPUID, XGETBV and the operating system, and decides from their answers which features are usable.
#include "core/cpu.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

namespace cpuinfer {

namespace {

constexpr uint32_t bit(int n) { return 1u << n; }

// CPUID bits: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E.
constexpr uint32_t kLeaf1Ecx = bit(12) | bit(28) | bit(29);           // FMA, AVX, F16C
constexpr uint32_t kOsxsave = bit(27);                                // leaf 1 ecx
constexpr uint32_t kAvx2 = bit(5);                                    // leaf 7 ebx
constexpr uint32_t kAvx512 = bit(16) | bit(17) | bit(30) | bit(31);   // leaf 7 ebx: F, DQ, BW, VL
constexpr uint32_t kAvx512VnniBit = bit(11);                          // leaf 7 ecx
constexpr uint32_t kAmx = bit(22) | bit(24);                          // leaf 7 edx: bf16, tiles
constexpr uint32_t kAvxVnniBit = bit(4);                              // leaf 7, subleaf 1, eax
constexpr uint32_t kAvx512Bf16Bit = bit(5);                           // leaf 7, subleaf 1, eax
constexpr uint64_t kSavesYmm = bit(1) | bit(2);                       // XCR0: SSE, AVX
constexpr uint64_t kSavesZmm = kSavesYmm | bit(5) | bit(6) | bit(7);  // and masks, upper halves, upper sixteen
constexpr uint64_t kSavesTiles = bit(17) | bit(18);                   // tile configuration and data
constexpr int kTileData = 18;                                         // state component, Linux x86/xstate.rst
constexpr long kRequestPermission = 0x1023;                           // ARCH_REQ_XCOMP_PERM

template <typename T>
constexpr bool all(T value, T mask) {
  return (value & mask) == mask;
}

uint32_t present_features(const CpuRegisters& r) {
  uint32_t features = kCpuBaseline;
  if (!all(r.leaf1_ecx, kLeaf1Ecx) || !all(r.leaf7_ebx, kAvx2)) return features;
  features |= kCpuAvx2;
  if (all(r.leaf7_1_eax, kAvxVnniBit)) features |= kCpuAvxVnni;
  if (all(r.leaf7_ebx, kAvx512)) {
    features |= kCpuAvx512;
    if (all(r.leaf7_ecx, kAvx512VnniBit)) features |= kCpuAvx512Vnni;
    if (all(r.leaf7_1_eax, kAvx512Bf16Bit)) features |= kCpuAvx512Bf16;
  }
  if (all(r.leaf7_edx, kAmx)) features |= kCpuAmxBf16;
  return features;
}

__attribute__((target("xsave"))) uint64_t read_xcr0() { return __builtin_ia32_xgetbv(0); }

CpuRegisters read_registers() {
  CpuRegisters r;
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx)) r.leaf1_ecx = ecx;
  if (__get_cpuid_count(7, 0, &eax, &r.leaf7_ebx, &r.leaf7_ecx, &r.leaf7_edx) && eax >= 1) {
    __get_cpuid_count(7, 1, &r.leaf7_1_eax, &ebx, &ecx, &edx);
  }
  if (r.leaf1_ecx & kOsxsave) r.xcr0 = read_xcr0();
  if (all(r.leaf7_edx, kAmx) && all(r.xcr0, kSavesTiles)) {
    r.amx_permitted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }
  return r;
}

std::string read_brand() {
  uint32_t words[12] = {};
  for (uint32_t i = 0; i < 3; ++i) {
    uint32_t* w = words + 4 * i;
    if (!__get_cpuid(0x80000002u + i, w, w + 1, w + 2, w + 3)) return "unknown";
  }
  char text[sizeof words + 1] = {};
  std::memcpy(text, words, sizeof words);
  const std::string brand = text;
  const auto begin = brand.find_first_not_of(' ');
  return begin == std::string::npos ? "unknown" : brand.substr(begin, brand.find_last_not_of(' ') - begin + 1);
}

}  // namespace

CpuInfo decide_features(const CpuRegisters& registers) {
  CpuInfo info;
  info.present = present_features(registers);
  uint32_t saved = kCpuBaseline;
  if (registers.leaf1_ecx & kOsxsave) {
    if (all(registers.xcr0, kSavesYmm)) saved |= kCpuAvx2 | kCpuAvxVnni;
    if (all(registers.xcr0, kSavesZmm)) saved |= kCpuAvx512 | kCpuAvx512Vnni | kCpuAvx512Bf16;
    if (all(registers.xcr0, kSavesTiles) && registers.amx_permitted) saved |= kCpuAmxBf16;
  }
  info.features = info.present & saved;
  return info;
}

const CpuInfo& cpu_info() {
  static const CpuInfo info = [] {
    CpuInfo found = decide_features(read_registers());
    found.brand = read_brand();
    return found;
  }();
  return info;
}

const char* feature_name(CpuFeature feature) {
  switch (feature) {
    case kCpuBaseline: return "baseline";
    case kCpuAvx2: return "avx2";
    case kCpuAvxVnni: return "avx_vnni";
    case kCpuAvx512: return "avx512";
    case kCpuAvx512Vnni: return "avx512_vnni";
    case kCpuAvx512Bf16: return "avx512_bf16";
    case kCpuAmxBf16: return "amx_bf16";
  }
  return "unknown";
}

}  // namespace cpuinfer
