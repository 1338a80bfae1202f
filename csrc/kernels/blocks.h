// GGUF's block encodings as panels hold them: the file's own bytes, so the file's own bits a weight, rows interleaved.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/kernels.h"

// X(Encoding member, the type that unpacks it, GGUF's name in lower case), for all of them.
// clang-format off
#define CPUINFER_BLOCK_ENCODINGS(X) \
  X(kQ5_0, Q5_0, "q5_0") \
  X(kQ5_1, Q5_1, "q5_1") \
  X(kQ2K, Q2K, "q2_k") \
  X(kQ3K, Q3K, "q3_k") \
  X(kQ4K, Q4K, "q4_k") \
  X(kQ5K, Q5K, "q5_k") \
  X(kQ6K, Q6K, "q6_k") \
  X(kIq4Nl, Iq4Nl, "iq4_nl") \
  X(kIq4Xs, Iq4Xs, "iq4_xs") \
  X(kMxfp4, Mxfp4, "mxfp4") \
  X(kTq1_0, Tq1_0, "tq1_0") \
  X(kTq2_0, Tq2_0, "tq2_0") \
  X(kIq2Xxs, Iq2Xxs, "iq2_xxs") \
  X(kIq2Xs, Iq2Xs, "iq2_xs") \
  X(kIq2S, Iq2S, "iq2_s") \
  X(kIq3Xxs, Iq3Xxs, "iq3_xxs") \
  X(kIq3S, Iq3S, "iq3_s") \
  X(kIq1S, Iq1S, "iq1_s") \
  X(kIq1M, Iq1M, "iq1_m")
// clang-format on

namespace cpuinfer {

// Consecutive parts of a row's block, in the file's order.  A panel's block holds each unit of its 16 rows together: 4
// bytes where they are four neighbours' codes, 1 or 2 where they are a scale.  Unit i of a part begins 16 times (at + i
// * stride) bytes into it: in the order in which kernels read them, for processors fetch ahead what is read in order.
struct BlockField {
  int bytes, unit, at, stride;
};

struct BlockLayout {
  Encoding encoding;
  const char* name;
  int inputs;  // of a row's block
  int bytes;
  std::span<const BlockField> fields;
};

// Null for an encoding that is not of blocks.
const BlockLayout* block_layout(Encoding encoding) noexcept;

// Rows' blocks [rows][blocks * bytes], as in the file, into lanes [lane, lane + rows) of a panel.
void pack_blocks(const BlockLayout& layout, const uint8_t* rows, int64_t count, int64_t blocks, int64_t lane,
                 uint8_t* panel) noexcept;

// One row of a panel -> fp32 [blocks * inputs]; baseline code.
void read_blocks(const BlockLayout& layout, const uint8_t* panel, int64_t blocks, int64_t lane, float* out) noexcept;

}  // namespace cpuinfer
