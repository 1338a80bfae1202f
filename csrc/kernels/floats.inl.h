// Bodies of the float kernels, written once over the parts of the including file's vector header.
// Included inside that file's namespace; every function has one definition per instruction set.

namespace {

// The fixed tree of kernels.h over all 16 lanes; combine(a, b) takes the lower and the upper half.
template <typename T, typename Combine>
inline T over_lanes(T (&lane)[kLanes], Combine combine) {
  for (int half = kLanes / 2; half >= 1; half /= 2) {
    for (int i = 0; i < half; ++i) lane[i] = combine(lane[i], lane[i + half]);
  }
  return lane[0];
}

inline float sum_lanes(const Part (&parts)[kParts]) {
  float lane[kLanes];
  for (int p = 0; p < kParts; ++p) store(lane + p * kPartLanes, parts[p]);
  return over_lanes(lane, [](float a, float b) { return a + b; });
}

inline float largest_lane(const Part (&parts)[kParts]) {
  float lane[kLanes];
  for (int p = 0; p < kParts; ++p) store(lane + p * kPartLanes, parts[p]);
  return over_lanes(lane, [](float a, float b) { return a > b ? a : b; });
}

inline Part magnitude(Part z) { return as_floats(both(as_bits(z), fill_bits(0x7fffffff))); }
inline Part sigmoid_times(Part z, Part minus_u) { return z / (fill(1.0f) + exponential(minus_u)); }

inline Part gelu(Part z) {
  const Part size = magnitude(z), x = size * fill(0x1.6a09e6p-1f);  // |z| / sqrt 2
  const Part t = fill(1.0f) / fused(fill(0.3275911f), x, fill(1.0f));
  Part series = fused(fill(1.061405429f), t, fill(-1.453152027f));
  series = fused(series, t, fill(1.421413741f));
  series = fused(series, t, fill(-0.284496736f));
  series = fused(series, t, fill(0.254829592f));
  const Part half = fill(0.5f) * (series * t) * exponential(fill(0.0f) - x * x);
  return larger(fill(0.0f), z) - size * half;  // the order keeps NaN
}

inline Part gelu_tanh(Part z) {
  const Part inner = fused(fill(0.044715f) * (z * z), z, z);
  return sigmoid_times(z, inner * fill(-0x1.988454p+0f));  // -2 sqrt(2 / pi)
}

template <Activation kActivation>
inline Part activated(Part z) {
  switch (kActivation) {
    case Activation::kRelu: return larger(fill(0.0f), z);
    case Activation::kSilu: return sigmoid_times(z, fill(0.0f) - z);
    case Activation::kGelu: return gelu(z);
    case Activation::kGeluTanh: return gelu_tanh(z);
    default: return z;
  }
}

inline Part capped(Part z, Part cap) {  // with t = exp(-2 |z / c|), tanh is (1 - t) / (1 + t) and the sign of z
  const Part t = exponential(magnitude(z / cap) * fill(-2.0f));
  const Part size = cap * ((fill(1.0f) - t) / (fill(1.0f) + t));
  return as_floats(plus(as_bits(size), both(as_bits(z), fill_bits(INT32_MIN))));
}

// y[i] = change(y[i]).
template <typename Change>
inline void each_part(int64_t n, float* y, Change change) {
  int64_t i = 0;
  for (; i + kPartLanes <= n; i += kPartLanes) store(y + i, change(load(y + i)));
  if (i < n) store_first(y + i, change(load_first(y + i, n - i)), n - i);
}

// The sum over lanes of x - centre (kSquared: of its square).
template <bool kSquared>
inline float sum_over(const float* x, int64_t n, float centre) {
  Part sums[kParts];
  for (Part& part : sums) part = fill(0.0f);
  for (int64_t i = 0; i < n; i += kLanes) {
    for (int p = 0; p < kParts; ++p) {
      const int64_t at = i + p * kPartLanes;
      if (at >= n) break;
      Part part;
      if (n - at >= kPartLanes) {
        part = load(x + at) - fill(centre);
      } else {  // lanes past the end are 0
        float rest[kPartLanes] = {};
        store(rest, load_first(x + at, n - at) - fill(centre));
        part = load_first(rest, n - at);
      }
      sums[p] = kSquared ? fused(part, part, sums[p]) : sums[p] + part;
    }
  }
  return sum_lanes(sums);
}

// One row's group of 32, sum[0] its sum and sum[stride] that of its first half; 1e-30 keeps 127 / m far from overflow.
inline void quantize_group(const float* x, int8_t* codes, float& scale, int32_t* sum, int stride) {
  constexpr int kGroupParts = kGroup / kPartLanes;
  Bits magnitudes = fill_bits(0);
  for (int p = 0; p < kGroupParts; ++p) {
    magnitudes = larger(magnitudes, both(as_bits(load(x + p * kPartLanes)), fill_bits(0x7fffffff)));
  }
  const int32_t magnitude = largest_of(magnitudes);
  float m;
  __builtin_memcpy(&m, &magnitude, sizeof m);
  const bool finite = magnitude < 0x7f800000;  // as integers, infinity and NaN are the largest magnitudes
  if (!finite || m < 1e-30f) {
    __builtin_memset(codes, 0, kGroup);
    scale = finite ? 0.0f : __builtin_nanf("");
    sum[0] = sum[stride] = 0;
    return;
  }
  scale = m / 127.0f;
  const Part inverse = fill(127.0f / m);
  Bits sums = fill_bits(0);
  for (int i = 0; i < kGroup; i += kPartLanes) {
    if (i == kHalf) sum[stride] = total_of(sums);
    const Bits code = to_nearest(load(x + i) * inverse);
    store_codes(codes + i, code);
    sums = plus(sums, code);
  }
  sum[0] = total_of(sums);
}

}  // namespace

void quantize(const float* x, int64_t ldx, int64_t k, const QuantizedRows& q) {
  for (int64_t g = 0; g < k / kGroup; ++g) {
    for (int r = 0; r < q.rows; ++r) {
      const int64_t at = g * q.rows + r;
      quantize_group(x + r * ldx + g * kGroup, q.codes + at * kGroup, q.scale[at], q.sum + g * 2 * q.rows + r, q.rows);
    }
  }
}

void rms_norm(const float* x, const float* weight, int64_t n, float eps, float* y) {
  const float squares = sum_over<true>(x, n, 0.0f);
  const float inverse = 1.0f / __builtin_sqrtf(squares / static_cast<float>(n) + eps);
  for (int64_t i = 0; i < n; ++i) y[i] = (x[i] * inverse) * weight[i];
}

void layer_norm(const float* x, const float* weight, const float* bias, int64_t n, float eps, float* y) {
  const float mean = sum_over<false>(x, n, 0.0f) / static_cast<float>(n);
  const float squares = sum_over<true>(x, n, mean);
  const float inverse = 1.0f / __builtin_sqrtf(squares / static_cast<float>(n) + eps);
  for (int64_t i = 0; i < n; ++i) y[i] = ((x[i] - mean) * inverse) * weight[i];
  if (bias) add(bias, n, y);
}

void add(const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] += x[i];
}

void multiply(const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] *= x[i];
}

void activate(Activation activation, int64_t n, float* y) {
  switch (activation) {
    case Activation::kNone: return;
    case Activation::kRelu: return each_part(n, y, activated<Activation::kRelu>);
    case Activation::kSilu: return each_part(n, y, activated<Activation::kSilu>);
    case Activation::kGelu: return each_part(n, y, activated<Activation::kGelu>);
    case Activation::kGeluTanh: return each_part(n, y, activated<Activation::kGeluTanh>);
  }
}

void softcap(float cap, int64_t n, float* y) {
  each_part(n, y, [&](Part z) { return capped(z, fill(cap)); });
}

void rope(float* head, const float* cosine, const float* sine, int64_t pairs, bool interleaved) {
  const int64_t step = interleaved ? 2 : 1;
  float* const second = head + (interleaved ? 1 : pairs);
  for (int64_t i = 0; i < pairs; ++i) {
    const float a = head[i * step], b = second[i * step];
    head[i * step] = a * cosine[i] - b * sine[i];
    second[i * step] = a * sine[i] + b * cosine[i];
  }
}

void to_half(const float* x, int64_t n, uint16_t* y) {
  int64_t i = 0;
  for (; i + kPartLanes <= n; i += kPartLanes) store_half(y + i, load(x + i));
  if (i == n) return;
  uint16_t tail[kPartLanes];
  store_half(tail, load_first(x + i, n - i));
  for (int64_t j = 0; i + j < n; ++j) y[i + j] = tail[j];
}
