// A block takes a segment of a row: its threads find the largest magnitude, which no order changes,
// then round. A segment is read twice, the second time from the first-level cache: 28 KB at most in
// a 7B model.
#include "kernels/cuda/device/dependent_launch.h"
#include "kernels/cuda/device/numbers.h"
#include "kernels/cuda/device/shared_memory.h"
#include "kernels/cuda/device/thread.h"
#include "kernels/cuda/device/vectors.h"
#include "kernels/cuda/ops.h"

namespace marcoro::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kStep = kThreads * kVector;  // elements of a block at a time
constexpr int kWarps = kThreads / kWarpThreads;
constexpr float kLargestCode = 448.0f;
constexpr uint32_t kInfinityBits = 0x7f800000u;

struct QuantizeWork {
  const uint16_t* x;
  int64_t x_stride;
  uint8_t* codes;
  int64_t codes_stride;
  float* scales;
  int64_t scales_stride;
  int columns;  // of a segment
  bool aligned;
};

// The code nearest to a finite value, the even one of two; beyond the largest, that.
MARCORO_DEVICE uint32_t ToE4M3(float value) {
  const uint32_t bits = FloatToBits(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t code;
  if (magnitude < 0x3c800000u) {
    // Below 2^-6 codes are 2^-9 apart, as floats are from 2^14 on.
    constexpr float kSpacing = 16384.0f;
    code = FloatToBits(Add(BitsToFloat(magnitude), kSpacing)) - FloatToBits(kSpacing);
  } else {
    // The bias of the exponent is 7, not 127.
    code = ((magnitude + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20) - (120u << 3);
  }
  return (code < 0x7eu ? code : 0x7eu) | (bits >> 24 & 0x80u);
}

// The largest number that any thread of the block passed.
MARCORO_DEVICE uint32_t MaxOverBlock(uint32_t value) {
  const SharedArray<uint32_t> warps(0, kWarps);
  MARCORO_UNROLL_LOOP
  for (int mask = kWarpThreads / 2; mask > 0; mask /= 2) {
    const uint32_t other = ShuffleXor(value, mask);
    value = other > value ? other : value;
  }
  if (Lane() == 0) warps.Store(Warp(), value);
  SyncBlock();
  MARCORO_UNROLL_LOOP
  for (int warp = 0; warp < kWarps; ++warp) {
    const uint32_t other = warps.Load(warp);
    value = other > value ? other : value;
  }
  return value;
}

MARCORO_KERNEL(kThreads, 4) QuantizeKernel(QuantizeWork work) {
  LaunchDependents();
  WaitForKernelAhead();
  const int64_t token = BlockIndexX();
  const int segment = BlockIndexY();
  const int64_t first = static_cast<int64_t>(segment) * work.columns;
  const uint16_t* x = work.x + token * work.x_stride + first;
  uint8_t* codes = work.codes + token * work.codes_stride + first;
  uint32_t largest = 0;  // magnitudes are ordered as their bits are
  for (int i = ThreadIndex() * kVector; i < work.columns; i += kStep) {
    const Float4 four = LoadFourBf16(x + i, work.columns - i, work.aligned);
    MARCORO_UNROLL_LOOP
    for (int e = 0; e < kVector; ++e) {
      const uint32_t magnitude = FloatToBits(four.value[e]) & 0x7fffffffu;
      largest = magnitude > largest ? magnitude : largest;
    }
  }
  largest = MaxOverBlock(largest);
  const bool finite = largest < kInfinityBits;
  const float scale = !finite        ? BitsToFloat(0x7fc00000u)
                      : largest == 0 ? 1.0f
                                     : Divide(BitsToFloat(largest), kLargestCode);
  if (ThreadIndex() == 0) work.scales[token * work.scales_stride + segment] = scale;
  for (int i = ThreadIndex() * kVector; i < work.columns; i += kStep) {
    const Float4 four = LoadFourBf16(x + i, work.columns - i, work.aligned);
    uint32_t word = 0;
    if (finite) {
      MARCORO_UNROLL_LOOP
      for (int e = 0; e < kVector; ++e) {
        word |= ToE4M3(Divide(four.value[e], scale)) << (e * 8);
      }
    }
    if (work.aligned && work.columns - i >= kVector) {
      *reinterpret_cast<uint32_t*>(codes + i) = word;
      continue;
    }
    MARCORO_UNROLL_LOOP
    for (int e = 0; e < kVector; ++e) {
      if (i + e < work.columns) codes[i + e] = static_cast<uint8_t>(word >> (e * 8) & 0xffu);
    }
  }
}

}  // namespace

void QuantizeActivations(Stream stream, const Tensor& x, const QuantizedActivations& out) {
  const int64_t segments = out.scales.columns;
  const int64_t columns = x.columns / segments;
  const QuantizeWork work = {.x = x.Row<const uint16_t>(0),
                             .x_stride = x.stride,
                             .codes = out.codes.Row<uint8_t>(0),
                             .codes_stride = out.codes.stride,
                             .scales = out.scales.Row<float>(0),
                             .scales_stride = out.scales.stride,
                             .columns = static_cast<int>(columns),
                             .aligned = RowsAreAligned(x.data, x.stride, sizeof(uint16_t)) &&
                                        RowsAreAligned(out.codes.data, out.codes.stride, 1) &&
                                        columns % kVector == 0};
  const LaunchShape shape = {.grid_x = static_cast<int>(x.rows),
                             .grid_y = static_cast<int>(segments),
                             .threads = kThreads,
                             .shared_bytes = kWarps * static_cast<int>(sizeof(uint32_t)),
                             .overlaps_kernel_ahead = true};
  Launch(stream, shape, QuantizeKernel, work);
}

}  // namespace marcoro::cuda
