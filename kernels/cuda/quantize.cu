// Stored numbers into the formats that weights are held in, once per weight when a model is loaded.
// A warp takes a row: no barrier, and its 32 lanes read 256 neighbouring bytes of BF16 at once.
// Quantizing reads a row twice, the second time from a cache. Loading brings in 50 GB/s at best, a
// hundredth of what the device reads, and chunks of several stages are converted side by side, so
// that one chunk's few warps are enough. All arithmetic is that of the host (worker/weights), bit
// for bit.
#include "kernels/check.h"
#include "kernels/cuda/device/numbers.h"
#include "kernels/cuda/device/thread.h"
#include "kernels/cuda/device/vectors.h"
#include "kernels/cuda/ops.h"

namespace marcoro::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpThreads;
constexpr int kLanesElements = kWarpThreads * kVector;

constexpr uint32_t kMagnitude = 0x7fffffffu;
constexpr uint32_t kInfinity = 0x7f800000u;
constexpr uint32_t kRoundsToInfinityBf16 = 0x7f7f8000u;  // the least magnitude that does

// Exact, and NaN stays one.
MARCORO_DEVICE float F16ToFloat(uint16_t half) {
  const uint32_t magnitude = (half & 0x7fffu) << 13;
  const uint32_t exponent = magnitude & (0x7c00u << 13);
  uint32_t bits = magnitude + ((127u - 15u) << 23);
  if (exponent == 0x7c00u << 13) {
    bits += (128u - 16u) << 23;  // infinities and NaN
  } else if (exponent == 0) {
    // A subnormal is an integer times 2^-24: put below 2^-14, that is subtracted.
    bits = FloatToBits(Subtract(BitsToFloat(bits + (1u << 23)), BitsToFloat(113u << 23)));
  }
  return BitsToFloat(bits | (half & 0x8000u) << 16);
}

// How four stored elements become numbers. `left` and `aligned` as for LoadFour.
struct StoredF32 {
  using Element = float;
  MARCORO_DEVICE static Float4 Load(const float* from, int left, bool aligned) {
    return LoadFour(from, left, aligned);
  }
};
struct StoredBf16 {
  using Element = uint16_t;
  MARCORO_DEVICE static Float4 Load(const uint16_t* from, int left, bool aligned) {
    return LoadFourBf16(from, left, aligned);
  }
};
struct StoredF16 {
  using Element = uint16_t;
  MARCORO_DEVICE static Float4 Load(const uint16_t* from, int left, bool aligned) {
    Float4 result;
    if (aligned && left >= kVector) {
      const Words2 pairs = *reinterpret_cast<const Words2*>(from);
      MARCORO_UNROLL_LOOP
      for (int i = 0; i < kVector; ++i) {
        const uint32_t pair = pairs.word[i / 2];
        result.value[i] = F16ToFloat(static_cast<uint16_t>(i % 2 == 0 ? pair : pair >> 16));
      }
      return result;
    }
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < kVector; ++i) result.value[i] = i < left ? F16ToFloat(from[i]) : 0.0f;
    return result;
  }
};

struct RowWork {
  NumberRows rows;
  bool rows_are_aligned = false;  // whole rows
  bool kept_is_aligned = false;   // and what is kept of them
  bool out_is_aligned = false;
  uint8_t* codes = nullptr;  // of QuantizeKernel
  float* scales = nullptr;
  uint16_t* out = nullptr;  // of RoundKernel
  int64_t out_stride = 0;
  uint32_t* not_finite = nullptr;
};

MARCORO_DEVICE uint32_t MaxMagnitude(const Float4& four, uint32_t most) {
  MARCORO_UNROLL_LOOP
  for (int i = 0; i < kVector; ++i) {
    const uint32_t magnitude = FloatToBits(four.value[i]) & kMagnitude;
    most = magnitude > most ? magnitude : most;
  }
  return most;
}

// Magnitudes compare like the integers of their bits, and NaN above all.
template <typename Stored>
MARCORO_DEVICE uint32_t MaxMagnitudeOfRow(const typename Stored::Element* row, int columns,
                                          bool aligned) {
  uint32_t most = 0;
  for (int i = Lane() * kVector; i < columns; i += kLanesElements) {
    most = MaxMagnitude(Stored::Load(row + i, columns - i, aligned), most);
  }
  MARCORO_UNROLL_LOOP
  for (int mask = kWarpThreads / 2; mask > 0; mask /= 2) {
    const uint32_t other = ShuffleXor(most, mask);
    most = other > most ? other : most;
  }
  return most;
}

// 1 for zeros; the smallest float keeps the scale of a row of almost-zeros from becoming zero.
MARCORO_DEVICE float ScaleOf(uint32_t max_magnitude) {
  if (max_magnitude == 0) return 1.0f;
  const uint32_t bits = FloatToBits(Divide(BitsToFloat(max_magnitude), 448.0f));
  return BitsToFloat(bits == 0 ? 1u : bits);
}

// E4M3FN(value / scale), both roundings to nearest even, saturating at ±448.
MARCORO_DEVICE uint32_t Quantize(float value, float scale) {
  constexpr int32_t kSmallestNormal = (127 - 6) << 23;  // 2^-6
  constexpr int32_t kRebias = (127 - 7) << 3;
  constexpr int32_t kLargest = 0x7e;  // 448
  const uint32_t bits = FloatToBits(Divide(value, scale));
  const auto magnitude = static_cast<int32_t>(bits & kMagnitude);
  int32_t code = 0;
  if (magnitude < kSmallestNormal) {
    // Codes count in steps of 2^-9 there, which is one unit in the last place of 2^14: the addition
    // rounds.
    const float sum = Add(BitsToFloat(static_cast<uint32_t>(magnitude)), 16384.0f);
    code = static_cast<int32_t>(FloatToBits(sum) - FloatToBits(16384.0f));
  } else {
    // Three bits of mantissa; a carry goes into the exponent, where it belongs.
    const int32_t rounded = magnitude + 0x7ffff + ((magnitude >> 20) & 1);
    code = (rounded >> 20) - kRebias;
    code = code < kLargest ? code : kLargest;
  }
  return static_cast<uint32_t>(code) | (bits >> 24 & 0x80u);
}

MARCORO_DEVICE void StoreFourCodes(uint8_t* to, const Float4& four, float scale, int left,
                                   bool aligned) {
  uint32_t word = 0;
  MARCORO_UNROLL_LOOP
  for (int i = 0; i < kVector; ++i) word |= Quantize(four.value[i], scale) << (8 * i);
  if (aligned && left >= kVector) {
    *reinterpret_cast<uint32_t*>(to) = word;
    return;
  }
  MARCORO_UNROLL_LOOP
  for (int i = 0; i < kVector; ++i) {
    if (i < left) to[i] = static_cast<uint8_t>(word >> (8 * i));
  }
}

template <typename Stored>
MARCORO_DEVICE const typename Stored::Element* RowOf(const NumberRows& rows, int row) {
  return static_cast<const typename Stored::Element*>(rows.data) +
         static_cast<int64_t>(row) * rows.columns;
}

template <typename Stored>
MARCORO_KERNEL(kThreads, 1)
QuantizeKernel(RowWork work) {
  const NumberRows& rows = work.rows;
  const int row = BlockIndexX() * kWarps + Warp();
  if (row >= rows.count) return;
  const auto* numbers = RowOf<Stored>(rows, row);
  const uint32_t most = MaxMagnitudeOfRow<Stored>(numbers, rows.columns, work.rows_are_aligned);
  const float scale = ScaleOf(most);
  if (Lane() == 0) {
    if (most >= kInfinity) *work.not_finite = 1;
    work.scales[row] = scale;
  }
  const auto* kept = numbers + rows.first_column;
  uint8_t* codes = work.codes + static_cast<int64_t>(row) * rows.kept_columns;
  for (int i = Lane() * kVector; i < rows.kept_columns; i += kLanesElements) {
    const int left = rows.kept_columns - i;
    StoreFourCodes(codes + i, Stored::Load(kept + i, left, work.kept_is_aligned), scale, left,
                   work.out_is_aligned);
  }
}

template <typename Stored>
MARCORO_KERNEL(kThreads, 1)
RoundKernel(RowWork work) {
  const NumberRows& rows = work.rows;
  const int row = BlockIndexX() * kWarps + Warp();
  if (row >= rows.count) return;
  const auto* kept = RowOf<Stored>(rows, row) + rows.first_column;
  uint16_t* out = work.out + row * work.out_stride;
  uint32_t most = 0;
  for (int i = Lane() * kVector; i < rows.kept_columns; i += kLanesElements) {
    const int left = rows.kept_columns - i;
    const Float4 four = Stored::Load(kept + i, left, work.kept_is_aligned);
    most = MaxMagnitude(four, most);
    StoreFourBf16(out + i, four, left, work.out_is_aligned);
  }
  if (most >= kRoundsToInfinityBf16) *work.not_finite = 1;
}

RowWork MakeWork(const NumberRows& rows, uint32_t* not_finite) {
  const size_t element = SizeOf(rows.dtype);
  RowWork work;
  work.rows = rows;
  work.rows_are_aligned = RowsAreAligned(rows.data, rows.columns, element);
  work.kept_is_aligned = work.rows_are_aligned && rows.first_column % kVector == 0;
  work.not_finite = not_finite;
  return work;
}

LaunchShape ShapeFor(const NumberRows& rows) {
  return {.grid_x = (rows.count + kWarps - 1) / kWarps, .threads = kThreads};
}

}  // namespace

void QuantizeRows(Stream stream, const NumberRows& rows, uint8_t* codes, float* scales,
                  uint32_t* not_finite) {
  RowWork work = MakeWork(rows, not_finite);
  work.codes = codes;
  work.scales = scales;
  work.out_is_aligned = RowsAreAligned(codes, rows.kept_columns, sizeof(uint8_t));
  if (rows.dtype == DType::kF32) {
    Launch(stream, ShapeFor(rows), QuantizeKernel<StoredF32>, work);
  } else if (rows.dtype == DType::kBF16) {
    Launch(stream, ShapeFor(rows), QuantizeKernel<StoredBf16>, work);
  } else {
    MARCORO_CHECK(rows.dtype == DType::kF16);
    Launch(stream, ShapeFor(rows), QuantizeKernel<StoredF16>, work);
  }
}

void RoundRows(Stream stream, const NumberRows& rows, const Tensor& out, uint32_t* not_finite) {
  RowWork work = MakeWork(rows, not_finite);
  work.out = out.Row<uint16_t>(0);
  work.out_stride = out.stride;
  work.out_is_aligned = RowsAreAligned(out.data, out.stride, sizeof(uint16_t));
  if (rows.dtype == DType::kF32) {
    Launch(stream, ShapeFor(rows), RoundKernel<StoredF32>, work);
  } else if (rows.dtype == DType::kBF16) {
    Launch(stream, ShapeFor(rows), RoundKernel<StoredBf16>, work);
  } else {
    MARCORO_CHECK(rows.dtype == DType::kF16);
    Launch(stream, ShapeFor(rows), RoundKernel<StoredF16>, work);
  }
}

}  // namespace marcoro::cuda
