// What RopeAndStoreKv writes in KvFormat::kFp8: the codes and scales of kernels/backend.h, the same
// bits in every backend, each in its own layout.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/kv_layout.h"
#include "kernels/cuda/kv_layout.h"
#include "kernels/reference/kv_layout.h"
#include "tests/kernels/backends.h"
#include "tests/kernels/matrix.h"

namespace marcoro {
namespace {

constexpr int32_t kTokens = 16;  // one block

// A key or value in the cache.
struct Row {
  std::vector<uint8_t> codes;
  float scale;
};

float FloatAt(const char* data) {
  float value;
  std::memcpy(&value, data, sizeof(value));
  return value;
}

Row CpuRow(const char* block, const AttentionShape& shape, int32_t kv_head, bool value,
           int32_t slot) {
  const char* head = block + kv_head * cpu::HeadBytes(shape.head_dim, KvFormat::kFp8);
  Row row;
  for (int32_t i = 0; i < shape.head_dim; ++i) {
    const int64_t at = value ? cpu::ValueCode(shape.head_dim, slot, i) : cpu::KeyCode(slot, i);
    row.codes.push_back(static_cast<uint8_t>(head[at]));
  }
  const int64_t scales = value ? cpu::ValueScales(shape.head_dim) : cpu::KeyScales(shape.head_dim);
  row.scale = FloatAt(head + scales + slot * 4);
  return row;
}

Row CudaRow(const char* block, const AttentionShape& shape, int32_t kv_head, bool value,
            int32_t slot) {
  const char* head = block + kv_head * cuda::HeadBytes(shape.head_dim, KvFormat::kFp8);
  const char* codes =
      head + (value ? cuda::KeyElements(shape.head_dim) : 0) + slot * shape.head_dim;
  const int64_t scales =
      value ? cuda::ValueScales(shape.head_dim) : cuda::KeyScales(shape.head_dim);
  return {{codes, codes + shape.head_dim}, FloatAt(head + scales + slot * 4)};
}

Row ReferenceRow(const char* block, const AttentionShape& shape, int32_t kv_head, bool value,
                 int32_t slot) {
  const KvCacheLayer cache = {const_cast<char*>(block), 1, shape.kv_heads, shape.head_dim,
                              KvFormat::kFp8};
  const int32_t table = 0;
  const reference::KvRow row =
      reference::FindKvRow(cache, DType::kF8E4M3, {0, kTokens, 0, &table, 1}, slot, kv_head,
                           value ? reference::KvPart::kValues : reference::KvPart::kKeys);
  const auto* codes = static_cast<const uint8_t*>(row.elements);
  return {{codes, codes + shape.head_dim}, *row.scale};
}

Row CachedRow(const std::string& backend, const char* block, const AttentionShape& shape,
              int32_t kv_head, bool value, int32_t slot) {
  const auto read = backend == "reference" ? ReferenceRow : backend == "cuda" ? CudaRow : CpuRow;
  return read(block, shape, kv_head, value, slot);
}

// The codes' numbers as the format's definition lists them.
double NumberOf(uint8_t code) {
  const int exponent = code >> 3 & 0xf;
  const int mantissa = code & 7;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(1 + mantissa / 8.0, exponent - 7);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

// Every code is looked at: the nearest, of two as near the even one.
uint8_t NearestCode(double number) {
  uint8_t best = 0;
  for (uint8_t code = 0; code < 0x7f; ++code) {
    const double distance = std::abs(NumberOf(code) - std::abs(number));
    const double least = std::abs(NumberOf(best) - std::abs(number));
    if (distance < least || (distance == least && code % 2 == 0)) best = code;
  }
  return std::signbit(number) ? best | 0x80 : best;
}

Row Expected(const std::vector<float>& elements) {
  float largest = 0;
  for (const float element : elements) {
    if (!std::isfinite(element)) {
      return {std::vector<uint8_t>(elements.size(), 0), std::numeric_limits<float>::quiet_NaN()};
    }
    largest = std::max(largest, std::abs(element));
  }
  Row row = {{}, 1};
  if (largest > 0) row.scale = std::max(largest / 448, std::numeric_limits<float>::denorm_min());
  for (const float element : elements) row.codes.push_back(NearestCode(element / row.scale));
  return row;
}

void ExpectSame(const Row& expected, const Row& actual) {
  EXPECT_EQ(expected.codes, actual.codes);
  if (std::isnan(expected.scale)) {
    EXPECT_TRUE(std::isnan(actual.scale));
  } else {
    EXPECT_EQ(expected.scale, actual.scale);
  }
}

class KvCodesTest : public ::testing::TestWithParam<std::string> {
 protected:
  // The block that the rows of qkv become as positions 0 … 15, the odd ones of which are rotated.
  std::vector<char> Store(const Matrix& qkv, const AttentionShape& shape) {
    const auto backend = MakeBackend(GetParam());
    const size_t bytes = backend->KvBlockBytes(shape.kv_heads, shape.head_dim, KvFormat::kFp8);
    auto memory = backend->Allocate(bytes);
    EXPECT_TRUE(memory.ok());
    std::memset(memory->data(), 0xff, bytes);
    Matrix rope(DType::kF32, kTokens, shape.head_dim);
    for (int32_t p = 0; p < kTokens; ++p) {
      for (int32_t i = 0; i < shape.head_dim / 2; ++i) {
        rope.Set(p, i, p % 2 == 0 ? 1 : 0.6f);
        rope.Set(p, shape.head_dim / 2 + i, p % 2 == 0 ? 0 : 0.8f);
      }
    }
    const int32_t table = 0;
    const std::vector<SequenceSpan> spans = {{0, kTokens, 0, &table, 1}};
    Matrix q(DType::kBF16, kTokens, int64_t{shape.heads} * shape.head_dim);
    backend->RopeAndStoreKv(qkv.view(), rope.view(), shape, spans,
                            {memory->data(), 1, shape.kv_heads, shape.head_dim, KvFormat::kFp8},
                            q.view());
    const char* data = static_cast<const char*>(memory->data());
    return {data, data + bytes};
  }

  void Check(const Matrix& qkv, const AttentionShape& shape) {
    const std::vector<char> block = Store(qkv, shape);
    const int32_t dim = shape.head_dim;
    for (int32_t p = 0; p < kTokens; ++p) {
      for (int32_t c = 0; c < shape.kv_heads; ++c) {
        SCOPED_TRACE(::testing::Message()
                     << "head_dim " << dim << ", position " << p << ", head " << c);
        std::vector<float> key, value;
        for (int32_t i = 0; i < dim; ++i) {
          const int64_t column = int64_t{shape.heads + c} * dim;
          const float self = qkv.At(p, column + i);
          const float other = qkv.At(p, column + (i + dim / 2) % dim);
          const float x = self * (p % 2 == 0 ? 1 : 0.6f);
          const float y = other * (p % 2 == 0 ? 0 : 0.8f);
          key.push_back(i < dim / 2 ? x - y : x + y);
          value.push_back(qkv.At(p, column + int64_t{shape.kv_heads} * dim + i));
        }
        ExpectSame(Expected(key), CachedRow(GetParam(), block.data(), shape, c, false, p));
        ExpectSame(Expected(value), CachedRow(GetParam(), block.data(), shape, c, true, p));
      }
    }
  }
};

TEST_P(KvCodesTest, AreThoseOfTheDefinition) {
  for (const AttentionShape shape :
       {AttentionShape{4, 2, 128, 0}, AttentionShape{1, 1, 2, 0}, AttentionShape{2, 2, 6, 0},
        AttentionShape{2, 1, 34, 0}, AttentionShape{3, 3, 80, 0}, AttentionShape{1, 1, 256, 0}}) {
    Check(Matrix(DType::kF32, kTokens, (shape.heads + 2 * shape.kv_heads) * shape.head_dim, 3)
              .FillNormal(1),
          shape);
  }
}

// Values whose largest is 448 have a scale of 1, so that every kind of rounding can be asked for.
TEST_P(KvCodesTest, RoundToNearestEvenFromTheSmallestToTheLargest) {
  const AttentionShape shape = {1, 1, 128, 0};
  Matrix qkv(DType::kF32, kTokens, 3 * 128);
  for (int32_t p = 0; p < kTokens; ++p) {
    for (int64_t c = 0; c < qkv.columns(); ++c) qkv.Set(p, c, 0);
  }
  for (uint8_t code = 0; code < 0x7e; ++code) {  // every number, what lies between, and beside that
    const double middle = (NumberOf(code) + NumberOf(code + 1)) / 2;
    const float sign = code % 2 == 0 ? 1 : -1;
    const float between = static_cast<float>(middle);
    qkv.Set(0, 256 + code, sign * static_cast<float>(NumberOf(code)));
    qkv.Set(2, 256 + code, sign * between);
    qkv.Set(4, 256 + code, sign * std::nextafter(between, 0.0f));
    qkv.Set(6, 256 + code, sign * std::nextafter(between, 1000.0f));
  }
  for (int32_t p = 0; p < kTokens; ++p) qkv.Set(p, 256 + 127, 448);
  Check(qkv, shape);
}

TEST_P(KvCodesTest, ZerosTinyAndHugeNumbersHaveScales) {
  const AttentionShape shape = {1, 1, 16, 0};
  Matrix qkv = Matrix(DType::kF32, kTokens, 3 * 16).FillNormal(2);
  const std::vector<float> factors = {0, 1e-44f, 1e-42f, 1e-38f, 1e-30f, 1, 1e20f, 1e37f};
  for (int32_t p = 0; p < kTokens; ++p) {
    for (int64_t c = 0; c < qkv.columns(); ++c) {
      qkv.Set(p, c, qkv.At(p, c) * factors[static_cast<size_t>(p) % factors.size()]);
    }
  }
  Check(qkv, shape);
}

TEST_P(KvCodesTest, WhatIsNotFiniteMakesItsOwnScaleNan) {
  const AttentionShape shape = {2, 2, 32, 0};
  Matrix qkv = Matrix(DType::kF32, kTokens, 6 * 32).FillNormal(3);
  qkv.Set(2, 2 * 32 + 5, NAN);        // key of head 0
  qkv.Set(4, 3 * 32 + 31, INFINITY);  // key of head 1
  qkv.Set(5, 4 * 32, -INFINITY);      // value of head 0
  qkv.Set(7, 5 * 32 + 17, -NAN);      // value of head 1
  Check(qkv, shape);
}

INSTANTIATE_TEST_SUITE_P(Backends, KvCodesTest, ::testing::ValuesIn(AllBackendNames()),
                         BackendTestName);

}  // namespace
}  // namespace marcoro
