// Heads of queries and keys spread by Hadamard matrices, and padded to whole groups.
// Included inside a set's namespace.

namespace {

inline int64_t round_up_to_groups(int64_t n) { return (n + kGroup - 1) / kGroup * kGroup; }

// Blocks of 2^n elements, the largest that divide n, times the Hadamard matrix / sqrt(2^n).
inline void spread_head(float* x, int64_t n) {
  const int64_t block = n & -n;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(block));
  for (int64_t first = 0; first < n; first += block) {
    float* y = x + first;
    for (int64_t h = 1; h < block; h *= 2) {
      for (int64_t i = 0; i < block; i += 2 * h) {
        for (int64_t j = i; j < i + h; ++j) {
          const float a = y[j], b = y[j + h];
          y[j] = a + b;
          y[j + h] = a - b;
        }
      }
    }
    for (int64_t i = 0; i < block; ++i) y[i] *= scale;
  }
}

// x and zeros up to a multiple of kGroup.
inline void copy_padded(const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = x[i];
  for (int64_t i = n; i < round_up_to_groups(n); ++i) y[i] = 0.0f;
}

}  // namespace
