// exp of a part, written once over the including file's vector header.
// Included inside that file's namespace.

namespace {

// exp(x): n = x / ln 2 rounded; exp(x) = 2^n exp(r), |r| <= ln(2) / 2, by its Taylor series to r^7 (the remainder is
// below 6e-9).  2^n is applied as two factors, so that results reach down through the subnormals to 0 and up to
// infinity.  Adding 1.5 x 2^23 leaves n in the low bits of the sum.  NaN stays NaN.
inline Part exponential(Part x) {
  x = larger(fill(-105.0f), x);  // exp(-105) is below half the least subnormal; the order keeps NaN
  x = smaller(fill(90.0f), x);
  const Part magic = fill(0x1.8p23f);
  const Part sum = fused(x, fill(0x1.715476p0f), magic);
  const Part n = sum - magic;
  Part r = fused(n, fill(-0x1.62e430p-1f), x);
  r = fused(n, fill(0x1.05c610p-29f), r);
  Part series = fused(fill(1.0f / 5040), r, fill(1.0f / 720));
  series = fused(series, r, fill(1.0f / 120));
  series = fused(series, r, fill(1.0f / 24));
  series = fused(series, r, fill(1.0f / 6));
  series = fused(series, r, fill(0.5f));
  series = fused(series, r, fill(1.0f));
  series = fused(series, r, fill(1.0f));
  const Bits whole = minus(as_bits(sum), as_bits(magic));
  const Bits half = halved(whole);
  const Bits one = fill_bits(127);
  return series * as_floats(to_exponent(plus(half, one))) * as_floats(to_exponent(plus(minus(whole, half), one)));
}

}  // namespace
