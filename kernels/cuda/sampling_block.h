// What a block that samples from one row of logits stands on: its shared memory, passes over the
// row, sums over its threads. For sampling.cu.
#pragma once

#include "kernels/cuda/device/loops.h"
#include "kernels/cuda/device/numbers.h"
#include "kernels/cuda/device/shared_atomic.h"
#include "kernels/cuda/device/shared_memory.h"
#include "kernels/cuda/device/thread.h"
#include "kernels/cuda/device/vectors.h"

namespace marcoro::cuda {

inline constexpr int kMostSamplingThreads = 512;
inline constexpr int kBins = 1024;       // of a histogram
inline constexpr int kCandidates = 512;  // that are ranked one by one
// A thread asks for so many vectors before it uses the first: 16 KB under way in a block. More
// would repeat more code than the instruction cache likes.
inline constexpr int kVectorsUnderWay = 2;

// A bin's place: a lane that walks 32 neighbouring bins, as its neighbours walk theirs, meets
// another bank than they.
MARCORO_DEVICE constexpr int PlaceOfBin(int bin) { return bin + bin / kWarpThreads; }
inline constexpr int kHistogramPlaces = kBins + kBins / kWarpThreads;
// Terms of a tile, with those that complete its first and its last line of 8.
inline constexpr int kTerms = kMostSamplingThreads + 16;

class BlockMemory {
 public:
  MARCORO_DEVICE BlockMemory()
      : ranks(0, kCandidates),
        terms(kRankBytes, kTerms),
        warp_values(kRankBytes + kTermBytes, kWarpThreads),
        answer(kRankBytes + kTermBytes + kWarpBytes, 2),
        low(kWideBytes, kHistogramPlaces),
        high(kWideBytes + kHistogramBytes, kHistogramPlaces),
        weights(kWideBytes + 2 * kHistogramBytes, kCandidates),
        counter(kWideBytes + 2 * kHistogramBytes + kCandidates * 4, 1) {}

  SharedArray<uint64_t> ranks;
  SharedArray<double> terms;
  SharedArray<uint64_t> warp_values;
  SharedArray<uint64_t> answer;
  // A histogram: what is in a bin is low + 2^32 high.
  SharedArray<uint32_t> low;
  SharedArray<uint32_t> high;
  SharedArray<uint32_t> weights;
  SharedArray<uint32_t> counter;

 private:
  static constexpr int kRankBytes = kCandidates * 8;
  static constexpr int kTermBytes = kTerms * 8;
  static constexpr int kWarpBytes = kWarpThreads * 8;
  static constexpr int kWideBytes = kRankBytes + kTermBytes + kWarpBytes + 2 * 8;
  static constexpr int kHistogramBytes = kHistogramPlaces * 4;

 public:
  static constexpr int kBytes = kWideBytes + 2 * kHistogramBytes + kCandidates * 4 + 4;
};

struct LogitRow {
  const float* logits;
  int columns;
  bool aligned;
};

// Calls body(id, logit) for the ids of [begin, end), which fall to `threads` threads of which this
// is number `thread`. begin is a multiple of 4.
template <typename Body>
MARCORO_DEVICE void ForEachLogitOf(const LogitRow& row, int begin, int end, int thread, int threads,
                                   const Body& body) {
  MARCORO_ROLLED_LOOP
  for (int base = begin; base < end; base += kVectorsUnderWay * threads * kVector) {
    Float4 logits[kVectorsUnderWay];
    MARCORO_UNROLL_LOOP
    for (int v = 0; v < kVectorsUnderWay; ++v) {
      const int i = base + (v * threads + thread) * kVector;
      logits[v] = LoadFour(row.logits + i, end - i, row.aligned);
    }
    MARCORO_UNROLL_LOOP
    for (int v = 0; v < kVectorsUnderWay; ++v) {
      MARCORO_UNROLL_LOOP
      for (int e = 0; e < kVector; ++e) {
        const int i = base + (v * threads + thread) * kVector + e;
        if (i < end) body(i, logits[v].value[e]);
      }
    }
  }
}

template <typename Body>
MARCORO_DEVICE void ForEachLogit(const LogitRow& row, const Body& body) {
  ForEachLogitOf(row, 0, row.columns, ThreadIndex(), BlockThreads(), body);
}

MARCORO_DEVICE uint64_t Smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

MARCORO_DEVICE uint64_t SumOverWarp64(uint64_t value) {
  MARCORO_UNROLL_LOOP
  for (int mask = kWarpThreads / 2; mask > 0; mask /= 2) value += ShuffleXor(value, mask);
  return value;
}

// The sum over this lane and those before it.
MARCORO_DEVICE uint64_t SumUpToLane(uint64_t value) {
  MARCORO_UNROLL_LOOP
  for (int distance = 1; distance < kWarpThreads; distance *= 2) {
    const uint64_t other = Shuffle(value, (Lane() - distance) & (kWarpThreads - 1));
    if (Lane() >= distance) value += other;
  }
  return value;
}

// Puts a value of each warp, the same in its lanes, where all threads can read it. What was there
// before must no longer be needed.
MARCORO_DEVICE void ShareWarpValues(const BlockMemory& memory, uint64_t value) {
  SyncBlock();
  if (Lane() == 0) memory.warp_values.Store(Warp(), value);
  SyncBlock();
}

MARCORO_DEVICE uint64_t SumOverBlock64(const BlockMemory& memory, uint64_t value) {
  ShareWarpValues(memory, SumOverWarp64(value));
  uint64_t sum = 0;
  for (int w = 0; w < BlockThreads() / kWarpThreads; ++w) sum += memory.warp_values.Load(w);
  return sum;
}

MARCORO_DEVICE uint64_t MinOverBlock64(const BlockMemory& memory, uint64_t value) {
  MARCORO_UNROLL_LOOP
  for (int mask = kWarpThreads / 2; mask > 0; mask /= 2) {
    value = Smaller(value, ShuffleXor(value, mask));
  }
  ShareWarpValues(memory, value);
  for (int w = 0; w < BlockThreads() / kWarpThreads; ++w) {
    value = Smaller(value, memory.warp_values.Load(w));
  }
  return value;
}

}  // namespace marcoro::cuda
