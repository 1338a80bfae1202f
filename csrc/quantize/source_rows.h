// Weights as files have them, fp32, fp16 or bf16, read as fp32 and looked through for what is no number.
#pragma once

#include <cstdint>

namespace cpuinfer {

enum class SourceKind : uint8_t { kF32, kF16, kBf16 };

constexpr int bytes_of(SourceKind kind) { return kind == SourceKind::kF32 ? 4 : 2; }

// `count`, a multiple of 4, to fp32; false where one is infinite or NaN.
bool read_source(SourceKind kind, const void* from, int64_t count, float* to) noexcept;

}  // namespace cpuinfer
