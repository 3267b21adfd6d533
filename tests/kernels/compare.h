// Comparisons of matrices that name the first element that differs.
#pragma once

#include <bit>
#include <cmath>
#include <cstring>

#include "gtest/gtest.h"
#include "tests/kernels/matrix.h"

namespace marcoro {

inline ::testing::AssertionResult SameShape(const Matrix& expected, const Matrix& actual) {
  if (expected.rows() == actual.rows() && expected.columns() == actual.columns()) {
    return ::testing::AssertionSuccess();
  }
  return ::testing::AssertionFailure()
         << "expected " << expected.rows() << " x " << expected.columns() << ", not "
         << actual.rows() << " x " << actual.columns();
}

// Equal bits. NaN equals the same NaN; 0 and -0 differ.
inline ::testing::AssertionResult BitwiseEqual(const Matrix& expected, const Matrix& actual) {
  if (auto same = SameShape(expected, actual); !same) return same;
  for (int64_t r = 0; r < expected.rows(); ++r) {
    for (int64_t c = 0; c < expected.columns(); ++c) {
      const float a = expected.At(r, c);
      const float b = actual.At(r, c);
      if (std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b)) continue;
      return ::testing::AssertionFailure()
             << "first difference at row " << r << ", column " << c << ": expected " << a
             << ", not " << b << " (differs by " << b - a << ")";
    }
  }
  return ::testing::AssertionSuccess();
}

// |actual - expected| <= absolute + relative * |expected|; NaN and infinities only where they are
// expected.
inline ::testing::AssertionResult Near(const Matrix& expected, const Matrix& actual, float relative,
                                       float absolute) {
  if (auto same = SameShape(expected, actual); !same) return same;
  for (int64_t r = 0; r < expected.rows(); ++r) {
    for (int64_t c = 0; c < expected.columns(); ++c) {
      const float a = expected.At(r, c);
      const float b = actual.At(r, c);
      if (std::isnan(a) && std::isnan(b)) continue;
      if (a == b || std::fabs(b - a) <= absolute + relative * std::fabs(a)) continue;
      return ::testing::AssertionFailure()
             << "first difference at row " << r << ", column " << c << ": expected " << a
             << ", not " << b << "; off by " << std::fabs(b - a) << ", allowed "
             << absolute + relative * std::fabs(a);
    }
  }
  return ::testing::AssertionSuccess();
}

// Half a unit in the last place of BF16, and a whole one: what a value may move by when it is
// rounded on the other side.
inline constexpr float kBf16HalfUlp = 1.0f / 256;
inline constexpr float kBf16Ulp = 1.0f / 128;

}  // namespace marcoro
