// Warp-wide matrix loads and products, by the fragment layouts of the PTX ISA.
#include <bit>
#include <cmath>
#include <limits>

#include "tests/kernels/simt/scheduler.h"

namespace marcoro::simt {
namespace {

constexpr int kRows = 16;
constexpr int kColumns = 8;

struct Operands {
  float* c;
  const uint32_t* a;
  const uint32_t* b;
};

// The elements of a word of a fragment: two BF16 numbers, or four E4M3 codes.
double Half(uint32_t pair, int half) {
  return std::bit_cast<float>(half == 0 ? pair << 16 : pair & 0xffff0000u);
}

// Unpacks the lanes' fragments, multiplies, and adds to theirs. Sums are in double, rounded once.
template <int kWordElements, double (*Element)(uint32_t word, int element)>
void MultiplyFragments(const std::array<void*, kWarpThreads>& lanes) {
  constexpr int kDepth = 8 * kWordElements;
  double a[kRows][kDepth];
  double b[kDepth][kColumns];
  for (int lane = 0; lane < kWarpThreads; ++lane) {
    const auto& operands = *static_cast<const Operands*>(lanes[lane]);
    const int group = lane / 4;
    for (int element = 0; element < kWordElements; ++element) {
      const int k = lane % 4 * kWordElements + element;
      for (int r = 0; r < 4; ++r) {
        a[group + r % 2 * 8][k + r / 2 * (kDepth / 2)] = Element(operands.a[r], element);
      }
      for (int r = 0; r < 2; ++r) b[k + r * (kDepth / 2)][group] = Element(operands.b[r], element);
    }
  }
  for (int lane = 0; lane < kWarpThreads; ++lane) {
    const auto& operands = *static_cast<const Operands*>(lanes[lane]);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8;
      const int column = lane % 4 * 2 + i % 2;
      double sum = operands.c[i];
      for (int k = 0; k < kDepth; ++k) sum += a[row][k] * b[k][column];
      operands.c[i] = static_cast<float>(sum);
    }
  }
}

struct MatrixLoad {
  uint32_t* result;
  const uint16_t* row;
};

}  // namespace

double CodeValue(uint32_t word, int byte) {
  const uint32_t code = word >> (byte * 8) & 0xffu;
  if ((code & 0x7fu) == 0x7fu) return std::numeric_limits<double>::quiet_NaN();
  const int exponent = static_cast<int>(code >> 3 & 15u);
  const double mantissa = static_cast<double>(code & 7u) + (exponent == 0 ? 0 : 8);
  const double value = std::ldexp(mantissa, (exponent == 0 ? 1 : exponent) - 10);
  return (code & 0x80u) != 0 ? -value : value;
}

void MultiplyMatrix(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                    SourceLocation here) {
  Operands operands = {c, a, b};
  MeetInWarp(&operands, here, MultiplyFragments<2, Half>);
}

void MultiplyCodeMatrix(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                        SourceLocation here) {
  Operands operands = {c, a, b};
  MeetInWarp(&operands, here, MultiplyFragments<4, CodeValue>);
}

void LoadMatrices(uint32_t (&r)[4], const void* shared_row, bool transposed, SourceLocation here) {
  if (reinterpret_cast<uintptr_t>(shared_row) % 16 != 0) {
    Fault("a row of a matrix that is not aligned to 16 bytes", here);
  }
  NoteSharedRead(shared_row, 16, here);
  MatrixLoad load = {r, static_cast<const uint16_t*>(shared_row)};
  MeetInWarp(&load, here, [transposed](const std::array<void*, kWarpThreads>& lanes) {
    const auto element = [&](int matrix, int row, int column) -> uint32_t {
      return static_cast<const MatrixLoad*>(lanes[matrix * 8 + row])->row[column];
    };
    for (int lane = 0; lane < kWarpThreads; ++lane) {
      const int group = lane / 4;
      const int pair = lane % 4 * 2;
      for (int m = 0; m < 4; ++m) {
        const uint32_t low = transposed ? element(m, pair, group) : element(m, group, pair);
        const uint32_t high =
            transposed ? element(m, pair + 1, group) : element(m, group, pair + 1);
        static_cast<const MatrixLoad*>(lanes[lane])->result[m] = low | high << 16;
      }
    }
  });
}

}  // namespace marcoro::simt
