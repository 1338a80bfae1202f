// What a kernel set is: the data it reads, the functions it offers, and the arithmetic every set shares bit for bit.
//
// All arithmetic is defined on a vector of 16 fp32 lanes ("virtual lanes"), whatever the hardware's width:
//   - each lane owns one output (a weight row, a head dimension, a cache position), and sums in ascending k;
//   - a sum over lanes is the fixed tree ((l0+l8)+(l4+l12)) ... : halve 16 -> 8 -> 4 -> 2 -> 1, adding the upper half;
//   - fma means one rounding (std::fma in scalar code); integer dot products are exact.
// So every kernel set gives the same bits, for any batch, tile or thread count.  Tests ask equality, not tolerance.
// Tile units are the exception: see TileKernels.
#pragma once

#include <cstdint>

namespace cpuinfer {

constexpr int kLanes = 16;        // weight rows in a panel; floats in a virtual vector
constexpr int kGroup = 32;        // inputs that share an activation scale; weights share theirs by a multiple or a part
constexpr int kHalf = 16;         // inputs that share a sum of activations, and a scale in some block encodings
constexpr int kTileRows = 8;      // activation rows handled by one sweep over a weight panel
constexpr int kMostRows = 64;     // activation rows of a product: tiles that use a panel while it is in the caches
constexpr int kPageTokens = 32;   // tokens in a page of the key-value cache
constexpr int kSegment = 512;     // positions whose attention is one partial result; whole pages
constexpr int kTileBlock = 32;    // activation rows of tile units: two tiles of 16, or a page of a prompt
constexpr int kTileInputs = 512;  // inputs of a weight panel that are unpacked at once for tile units
constexpr int kTilePositions = 256;  // positions whose keys and values are: they stay in the second cache
constexpr int kTileQueries = 128;    // rows, and
constexpr int kTileHeads = 8;        // query heads of a key-value head, at most, that share what was unpacked

// One row is multiplied by so many panels at a time, where there are as many: processors fetch ahead along several runs
// of bytes faster than along one.
constexpr int64_t kPanelsAtOnce = 8;

// kQ5_0 and those after it are GGUF's block encodings, as blocks.h lays them out.
enum class Encoding : uint8_t {
  kInt4,
  kInt8,
  kF16,
  kBF16,
  kF32,
  kTable4,
  kQ5_0,
  kQ5_1,
  kQ2K,
  kQ3K,
  kQ4K,
  kQ5K,
  kQ6K,
  kIq4Nl,
  kIq4Xs,
  kMxfp4,
  kTq1_0,
  kTq2_0,
  kIq2Xxs,
  kIq2Xs,
  kIq2S,
  kIq3Xxs,
  kIq3S,
  kIq1S,
  kIq1M,
};

// Where the parts of a cell begin: the codes of a panel's group, then what they are scaled by.  All that a kernel reads
// of a matrix is thus one run of bytes, which processors fetch ahead by themselves.
struct Cell {
  int64_t codes = 0;            // bytes of them; fp16 [16] scales follow
  int64_t bias = 0, zeros = 0;  // where fp16 [16] biases and uint8 [16] zero points begin; 0: there are none
  int64_t bytes = 0;            // of all

  bool operator==(const Cell&) const = default;
};

// One linear layer's weights [n, k], packed in panels of kLanes rows; the last panel is padded with zero weights.
//   value(n, k) = scale[n, g] * (code[n, k] - zero[n, g]) + bias[n, g],  g = k / group   (kInt4, kInt8)
//   value(n, k) = scale[n, g] * table_scale * table[code[n, k]]                          (kTable4)
// Codes of 32 inputs of a panel:
//   kInt4, kTable4: 4 blocks of 64 bytes; byte [16 rows][4 k] of block s holds k = 4 s + j in the low nibble and
//          k = 16 + 4 s + j in the high nibble (one 512-bit load, or two 256-bit loads, feed two dot-product steps)
//   kInt8: 8 blocks of 64 bytes; byte [16 rows][4 k] of block s holds the unsigned code of k = 4 s + j
//   kF16, kBF16 (uint16), kF32 (float): [k][16 rows]
struct Weights {
  Encoding encoding;
  int32_t zero;            // 8 for Q4_0, 128 for Q8_0, 0 for Q4_1; where there are no `zeros`
  int64_t n;               // output rows
  int64_t k;               // inputs; a multiple of kGroup but for floats
  const uint8_t* codes;    // [ceil(n / 16)] panels of [k / group] cells, [k] inputs or [k / inputs] blocks
  int64_t panel_bytes;     // from a panel to the next: another matrix's may lie between
  int64_t group = kGroup;  // inputs that share a scale: a multiple of kGroup that divides k
  Cell cell = {};          // kInt4, kInt8, kTable4
  int16_t table[16] = {};  // kTable4
  float table_scale = 1;
};

// Up to kTileRows rows of activations, quantised to int8 per row and group, for the integer kernels.
//   value(r, k) ~ scale[g][r] * codes[g][r][k % 32]
struct QuantizedRows {
  int rows;       // 1 .. kTileRows; also the stride below
  int8_t* codes;  // int8 [k / 32][rows][32], each in -127 .. 127
  float* scale;   // fp32 [k / 32][rows]: largest magnitude of the group / 127, or 0
  int32_t* sum;   // int32 [k / 32][2][rows]: sums of the codes of the group, and of its first half
};

// Rows [panel_begin, panel_end) * 16 of  y[r, n] = sum_k w[n, k] x[r, k].
struct Gemm {
  const Weights* w;
  int64_t panel_begin, panel_end;
  QuantizedRows quantized;  // but for floats: the first tile of kTileRows rows; the others follow, each whole
  const float* x;           // for float weights: fp32 [rows][ldx]
  int64_t ldx;
  int rows;  // 1 .. kMostRows
  float* y;  // fp32 [rows][ldy], where row 16 * panel_begin of w begins; panels write all their 16 lanes
  int64_t ldy;
};

// Whether tile units may take weights: fp32 ones are kept in full.
constexpr bool fits_tiles(Encoding encoding) { return encoding != Encoding::kF32; }

// The same product by tile units, of which no bit is promised: rows and weights are rounded to bf16 first, at most one
// part in 2^9 each, and summed in fp32 in an order of the units' own, the same for a row whatever else is computed.
struct TileProduct {
  const Weights* w;
  int64_t panel_begin, panel_end;
  const uint16_t* x;  // bf16, of every kTileInputs inputs (the last may be fewer): [x_rows / kTileBlock][inputs / 32]
                      // [kTileBlock][32], zero behind k
  int64_t x_rows;     // of x, a multiple of kTileBlock
  int64_t row, rows;  // those to multiply, multiples of kTileBlock
  float* y;           // fp32 [rows][ldy], where row 16 * panel_begin of w begins; panels write all their 16 lanes
  int64_t ldy;
};

// By element, with exp within 1.6 units of 2^-24: relu max(z, 0); silu z / (1 + exp(-z)); gelu_tanh z / (1 + exp(-2
// u)), u = sqrt(2 / pi) (z + 0.044715 z^3); gelu max(z, 0) - |z| h, where h = erfc(|z| / sqrt 2) / 2 by formula 7.1.26
// of Abramowitz and Stegun, off by at most 7.5e-8.
enum class Activation : uint8_t { kNone, kRelu, kSilu, kGelu, kGeluTanh };

// How keys and values are kept: fp16, or codes, value ~ scale * (code - zero), with an fp16 scale for each position and
// group of kGroup head dimensions.
enum class CacheType : uint8_t {
  kF16,
  kInt8,  // rounded like activations; the zero of keys is 128, that of values 0
  kInt4,  // keys are spread first (below).  e: the element of largest magnitude, the negative one of two; scale e / -8;
          // code - 8 = min(x * (-8 / e), 7) rounded to nearest even; zeros and faults as for activations.  Zero 8.
};

// Where in a page one layer's key-value head lies, in bytes.  P is head_dim rounded up to kGroup, zeros in between, g a
// group of P, t a position of the page; lanes of 4 codes are what dot products take.
//   kF16:  k fp16 [head_dim][t] (transposed: lanes are positions), v fp16 [t][head_dim rounded up to 16]; no scales
//   kInt8: k uint8 [g][8 s][t][4], dimension 4 s + j of the group;  v int8 [t / 4][P][4], position 4 (t / 4) + j
//   kInt4: k uint8 [g][4 s][t][4], dimensions 4 s + j in the low, 16 + 4 s + j in the high nibble;
//          v uint8 [t / 4][g][16][4], position 4 (t / 4) + j, dimensions l in the low and 16 + l in the high nibble
//   k_scale, v_scale: fp16 [g][t]
struct HeadPlace {
  int64_t k, k_scale, v, v_scale;
};

// Puts the key and the value of one position, fp32 [head_dim] each, into a page.
// A key is spread: blocks of 2^n dimensions, the largest that divide head_dim, are multiplied by the Hadamard matrix /
// sqrt(2^n): for h = 1, 2, 4, ...: (a, b) -> (a + b, a - b) for elements h apart, then times the fp32 1 / sqrt(2^n).
struct Keep {
  CacheType cache;
  HeadPlace place;
  uint8_t* page;
  int64_t slot;  // of the position in its page
  const float* k;
  const float* v;
  int64_t head_dim;
  float* scratch;  // fp32 [head_dim rounded up to kGroup]
};

// A part of a row's attention: its largest score, the sum of exp(score - largest) and of that times V, are fp32
// [head_dim rounded up to kGroup] values, then the largest and the sum.
constexpr int64_t kPartTail = kLanes;
constexpr int64_t attend_part_floats(int64_t head_dim) { return (head_dim + kGroup - 1) / kGroup * kGroup + kPartTail; }

// Floats of scratch: scores of a segment and two parts of each row, then its query in codes or spread.
constexpr int64_t attend_scratch_floats(int64_t head_dim) {
  return kTileRows * (kSegment + 4 * attend_part_floats(head_dim));
}

// Queries of one sequence that share one key-value head, over positions [begin, limit) of a row:
//   out = softmax(s) V,  s(t) = softcap(scale q k_t) + slope (t - (limit - 1)),  softcap(z) = c tanh(z / c).
//
// Positions are cut at multiples of kSegment.  Of a segment, over the positions of it that the row sees:
//   kF16:  q k_t: fma(q[d], k[d], sum) in ascending d
//   codes: the query (of kInt4: spread) rounded like activations; per group in ascending order
//          i = sum (code - zero) * q  (int32, exact);  sum = fma(float(i), scale_k * scale_q, sum)
//   largest m = max s(t); p(t) = exp(s(t) - m); l = sum of p by lanes (lane t % 16, ascending t) and the tree;
//   kF16:  o[d] = fma(p(t), v[t][d], o[d]) in ascending t
//   codes: per page in ascending order and group of dimensions, w(t) = p(t) * scale_v(t), 0 for positions not seen,
//          rounded like activations;  i as above over the page's positions, exact;  o[d] = fma(float(i), scale_w, o[d])
// Segments are merged in ascending order, the first being taken as it is: m = max(m0, m1), f = exp(m0 - m),
// g = exp(m1 - m), l = fma(l1, g, l0 * f), o = fma(o1, g, o0 * f).  At the end out = o / l.
// So a row's result depends on nothing but its own positions: not on other rows, nor on who computes which segment.
struct Attend {
  int rows;                     // 1 .. kTileRows queries
  const float* q[kTileRows];    // fp32 [head_dim] each
  float* out[kTileRows];        // fp32 [head_dim] each; nothing is written past head_dim
  int64_t begin[kTileRows];     // the first position each query sees
  int64_t limit[kTileRows];     // one past the last, > begin
  const uint8_t* const* pages;  // the sequence's cache pages, kPageTokens positions each
  CacheType cache;
  HeadPlace place;
  int64_t head_dim;
  float scale;
  float softcap;           // 0 for none
  float slope[kTileRows];  // 0 for none
  float* scratch;          // attend_scratch_floats(head_dim)
  float* part[kTileRows];  // null, or where only the part of one segment is to go, not merged, instead of out
  int64_t segment;         // which one: of positions [segment * kSegment, ...)
};

// Merges parts of a row, of neighbouring segments in ascending order, and gives what Attend would.
struct MergeParts {
  const float* parts;  // [count][stride]
  int64_t count, stride;
  int64_t head_dim;
  float* out;      // fp32 [head_dim]
  float* scratch;  // attend_part_floats(head_dim)
};

// Queries of one sequence by tile units, for some heads that share a key-value head: what Attend means, with queries,
// keys, values and weights rounded to bf16.  Positions are taken kTilePositions at a time, at multiples of it, so that
// a row's result depends on nothing but what it sees.
struct TileAttend {
  int64_t rows;      // queries, a multiple of kTileBlock, at most kTileQueries; at `position` and those after it
  int64_t position;  // a multiple of kPageTokens
  int64_t heads;     // at most kTileHeads
  const float* q;    // fp32 [rows][stride], each with heads * head_dim numbers
  float* out;        // fp32 [rows][out_stride], the same
  int64_t stride, out_stride;
  int64_t window;  // positions a query sees, with its own; 0: all
  const uint8_t* const* pages;
  CacheType cache;
  HeadPlace place;
  int64_t head_dim;
  float scale;
  float softcap;
  const float* slope;  // [heads], or null
  void* room;          // tile_room(head_dim) bytes, aligned to 64
};

// Bytes: keys and values of kTilePositions, queries and sums of kTileQueries rows and kTileHeads heads, one block's
// scores and weights.
constexpr int64_t tile_room(int64_t head_dim) {
  const int64_t k = (head_dim + 31) / 32 * 32, d = (head_dim + 15) / 16 * 16, queries = kTileQueries * kTileHeads;
  return kTilePositions * (k + d) * 2 + queries * (k * 2 + d * 4 + 2 * 4) + kTileBlock * kTilePositions * (4 + 2);
}

// What tile units add to a kernel set.  Results are deterministic, and a row's do not depend on the other rows, but
// they are not those of the other kernels.
struct TileKernels {
  // A row x fp32 [k] as row `row` of `rows` of TileProduct::x.
  void (*to_tiles)(const float* x, int64_t k, int64_t rows, int64_t row, uint16_t* tiles);
  void (*multiply)(const TileProduct& p);
  void (*attend)(const TileAttend& a);
};

struct KernelSet {
  const char* name;
  uint32_t needs;  // CpuFeature bits

  // x fp32 [rows][ldx] -> q, for k inputs.  Per row and group: m = max |x|; scale = m / 127; inverse = 127 / m (both
  // one fp32 division); code = x * inverse rounded to nearest even.  A group whose largest magnitude is below 1e-30 is
  // all zero; a group holding NaN or infinity gets a NaN scale and zero codes, so that the fault surfaces in the
  // result.
  void (*quantize)(const float* x, int64_t ldx, int64_t k, const QuantizedRows& q);
  // Integer weights: per group of 32 inputs, or per half of it where the weights' scale is for 16, in ascending order,
  //   i = sum codes * q - zero * sum  (int32, exact);  y = fma(float(i), scale_w * scale_x, y);
  // with a bias also  y = fma(bias_w, scale_x * float(sum), y).  The product of the scales is rounded to fp32 first.
  // Float weights: y = fma(w[k], x[k], y) in ascending k, weights widened exactly.
  void (*gemm)(const Gemm& g);

  // y = x / sqrt(mean(x^2) + eps) * weight: lane l sums fma(x, x, sum) over k = l, l + 16, ...; then the tree;
  // inv = 1 / sqrt(total / n + eps); y = (x * inv) * weight.   x, y fp32 [n]; may alias.
  void (*rms_norm)(const float* x, const float* weight, int64_t n, float eps, float* y);
  // y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * weight (+ bias, unless null): both means by lanes and the tree.
  void (*layer_norm)(const float* x, const float* weight, const float* bias, int64_t n, float eps, float* y);
  void (*add)(const float* x, int64_t n, float* y);       // y += x
  void (*multiply)(const float* x, int64_t n, float* y);  // y *= x
  void (*activate)(Activation activation, int64_t n, float* y);
  void (*softcap)(float cap, int64_t n, float* y);  // y = cap * tanh(y / cap)
  // In place on one head [head_dim]: pairs (2 i, 2 i + 1) when interleaved, else (i, i + pairs), i < pairs;
  // (a, b) -> (a cos - b sin, a sin + b cos) with products rounded before the sum.  cosine, sine fp32 [pairs].
  void (*rope)(float* head, const float* cosine, const float* sine, int64_t pairs, bool interleaved);
  void (*to_half)(const float* x, int64_t n, uint16_t* y);  // round to nearest even
  void (*keep)(const Keep& k);
  void (*attend)(const Attend& a);
  void (*merge)(const MergeParts& m);

  const TileKernels* tiles = nullptr;
};

}  // namespace cpuinfer
