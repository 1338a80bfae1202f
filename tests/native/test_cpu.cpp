// The decision which features are usable, on answers that no single machine gives, and the choice of a kernel set.
#include <string>

#include "check.h"
#include "core/cpu.h"
#include "core/error.h"
#include "kernels/dispatch.h"

namespace cpuinfer {
namespace {

constexpr uint32_t kEverything = kCpuAvx2 | kCpuAvxVnni | kCpuAvx512 | kCpuAvx512Vnni | kCpuAvx512Bf16 | kCpuAmxBf16;

// A processor with everything, under a system that enables everything.
CpuRegisters full() {
  CpuRegisters r;
  r.leaf1_ecx = 1u << 12 | 1u << 27 | 1u << 28 | 1u << 29;
  r.leaf7_ebx = 1u << 5 | 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
  r.leaf7_ecx = 1u << 11;
  r.leaf7_edx = 1u << 22 | 1u << 24 | 1u << 25;
  r.leaf7_1_eax = 1u << 4 | 1u << 5;
  r.xcr0 = 0x600e7;
  r.amx_permitted = true;
  return r;
}

std::string message(std::string_view name, const char* environment, const CpuInfo& cpu) {
  try {
    return select_kernels(name, environment, cpu).name;
  } catch (const Error& error) {
    CHECK(error.fault() == Fault::kUnsupportedCpu);
    return error.what();
  }
}

TEST("a processor with everything enabled uses everything") {
  const CpuInfo cpu = decide_features(full());
  CHECK_EQ(cpu.features, kEverything);
  CHECK_EQ(cpu.present, kEverything);
  CHECK_EQ(message("", nullptr, cpu), "amx");
}

TEST("AVX-512 that the system does not save is present but not usable") {
  for (const uint64_t xcr0 : {uint64_t{0x7}, uint64_t{0x27}, uint64_t{0x67}, uint64_t{0xc7}}) {
    CpuRegisters r = full();
    r.xcr0 = xcr0;
    const CpuInfo cpu = decide_features(r);
    CHECK_EQ(cpu.features, uint32_t{kCpuAvx2 | kCpuAvxVnni});
    CHECK_EQ(cpu.present, kEverything);
    CHECK_EQ(message("", nullptr, cpu), "avx_vnni");
    CHECK_EQ(message("avx512_vnni", nullptr, cpu),
             "isa=avx512_vnni: the operating system has not enabled avx512, avx512_vnni; usable here: avx_vnni, avx2, "
             "scalar");
  }
}

TEST("without OSXSAVE nothing beyond the baseline is usable") {
  CpuRegisters r = full();
  r.leaf1_ecx &= ~(1u << 27);
  r.xcr0 = 0;
  CHECK_EQ(decide_features(r).features, 0u);
  CHECK_EQ(message("", nullptr, decide_features(r)), "scalar");
}

TEST("AMX needs both tile bits of XCR0 and the permission") {
  for (const auto& [xcr0, permitted] :
       {std::pair{0x600e7, false}, std::pair{0x200e7, true}, std::pair{0x400e7, true}}) {
    CpuRegisters r = full();
    r.xcr0 = static_cast<uint64_t>(xcr0);
    r.amx_permitted = permitted;
    CHECK_EQ(decide_features(r).features, kEverything & ~uint32_t{kCpuAmxBf16});
    CHECK_EQ(
        message("amx", nullptr, decide_features(r)),
        "isa=amx: the operating system has not enabled amx_bf16; usable here: avx512_vnni, avx_vnni, avx2, scalar");
  }
}

TEST("a hypervisor that hides one bit hides the feature it belongs to") {
  CpuRegisters no_fma = full();
  no_fma.leaf1_ecx &= ~(1u << 12);
  CHECK_EQ(decide_features(no_fma).present, 0u);
  CpuRegisters no_bw = full();
  no_bw.leaf7_ebx &= ~(1u << 30);
  CHECK_EQ(decide_features(no_bw).features, uint32_t{kCpuAvx2 | kCpuAvxVnni | kCpuAmxBf16});
  CHECK_EQ(message("", nullptr, decide_features(no_bw)), "avx_vnni");
  CpuRegisters no_vnni = full();
  no_vnni.leaf7_ecx = 0;
  no_vnni.leaf7_1_eax = 0;
  CHECK_EQ(message("", nullptr, decide_features(no_vnni)), "avx2");
  CpuRegisters no_bf16_tiles = full();
  no_bf16_tiles.leaf7_edx = 1u << 24 | 1u << 25;
  CHECK_EQ(message("", nullptr, decide_features(no_bf16_tiles)), "avx512_vnni");
  CpuRegisters no_bf16 = full();
  no_bf16.leaf7_1_eax = 1u << 4;
  CHECK_EQ(message("", nullptr, decide_features(no_bf16)), "avx512_vnni");
}

TEST("a forced set is used, a caller's name goes before the environment's") {
  const CpuInfo cpu = decide_features(full());
  CHECK_EQ(message("", "avx2", cpu), "avx2");
  CHECK_EQ(message("scalar", "avx2", cpu), "scalar");
  CHECK_EQ(message("", "", cpu), "amx");
}

TEST("an unknown or impossible name says what is there and what is missing") {
  CpuInfo cpu;
  cpu.present = cpu.features = kCpuAvx2;
  CHECK_EQ(message("", "avx3", cpu),
           "CPUINFER_ISA=avx3: no such kernel set; there are amx, avx512_vnni, avx_vnni, avx2, scalar; usable here: "
           "avx2, scalar");
  CHECK_EQ(message("", "avx_vnni", cpu),
           "CPUINFER_ISA=avx_vnni: this processor lacks avx_vnni; usable here: avx2, scalar");
  cpu.present = kCpuAvx2 | kCpuAvx512 | kCpuAvx512Vnni;
  CHECK_EQ(message("amx", nullptr, cpu),
           "isa=amx: this processor lacks avx512_bf16, amx_bf16; the operating system has not enabled avx512, "
           "avx512_vnni; usable "
           "here: avx2, scalar");
}

TEST("this machine's own answer is consistent") {
  const CpuInfo& cpu = cpu_info();
  CHECK_EQ(cpu.features & ~cpu.present, 0u);
  CHECK(!cpu.brand.empty());
  CHECK(&cpu == &cpu_info());
}

}  // namespace
}  // namespace cpuinfer

int main() { return check::run_all(); }
