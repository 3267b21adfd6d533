// Loops that do one thing only. Reading: eight loads of 16 bytes of each thread under way, 2048
// threads on a multiprocessor: 256 KB, ten times what hides the latency. Products: operands in
// registers (and, for warpgroups, one tile of B in shared memory) that are no zeros, since zeros
// take less power and raise the clock; eight chains of a warp, or two warpgroups of a block in
// turns, so that no product waits for the one before.
#include "kernels/bench/cuda_limits.h"
#include "kernels/cuda/device/global_memory.h"
#include "kernels/cuda/device/loops.h"
#include "kernels/cuda/device/matrix.h"
#include "kernels/cuda/device/system_clock.h"
#include "kernels/cuda/device/thread.h"
#include "kernels/cuda/device/warpgroup_matrix.h"

namespace marcoro::cuda {
namespace {

constexpr int kReadThreads = 1024;
constexpr int kReadBatch = 8;
constexpr int kVectorBytes = 16;

constexpr int kMultiplyThreads = 256;
constexpr int kChains = 8;
constexpr int kFlopsOfProduct = 2 * 16 * 8 * 16;

constexpr int kGroupColumns = 256;
constexpr int kGroupDepth = 64;
constexpr int kGroupSteps = kGroupDepth / 16;
constexpr int kGroupBytes = kGroupColumns * kSwizzledRowBytes;
constexpr int kFlopsOfGroup = 2 * 64 * kGroupColumns * kGroupDepth;

// Two BF16 between 1 and 2, or -2 and -1, other ones for every seed.
MARCORO_DEVICE uint32_t TwoNumbers(uint32_t seed) {
  return ((seed * 2654435761u) & 0x807f807fu) | 0x3f803f80u;
}

MARCORO_KERNEL(32, 1) PauseKernel(uint64_t nanoseconds) {
  const uint64_t begin = SystemNanoseconds();
  while (SystemNanoseconds() - begin < nanoseconds) {
  }
}

MARCORO_KERNEL(kReadThreads, 2) ReadKernel(const char* data, int64_t vectors, uint32_t* sink) {
  const int64_t threads = int64_t{GridX()} * kReadThreads;
  const int64_t first = int64_t{BlockIndexX()} * kReadThreads + ThreadIndex();
  uint32_t sum = 0;
  MARCORO_ROLLED_LOOP
  for (int64_t i = first; i < vectors; i += kReadBatch * threads) {
    Words4 batch[kReadBatch];
    MARCORO_UNROLL_LOOP
    for (int j = 0; j < kReadBatch; ++j) {
      const int64_t at = i + j * threads;
      batch[j] = LoadStreaming(data + (at < vectors ? at : i) * kVectorBytes);
    }
    MARCORO_UNROLL_LOOP
    for (int j = 0; j < kReadBatch; ++j) {
      sum ^= batch[j].word[0] ^ batch[j].word[1] ^ batch[j].word[2] ^ batch[j].word[3];
    }
  }
  if (sum == 0x9e3779b9u) *sink = sum;  // nearly never
}

MARCORO_KERNEL(kMultiplyThreads, 2) MultiplyKernel(int iterations, float* sink) {
  const auto seed = static_cast<uint32_t>(BlockIndexX() * kMultiplyThreads + ThreadIndex());
  float sums[kChains][4];
  uint32_t a[4];
  uint32_t b[2];
  MARCORO_UNROLL_LOOP
  for (int i = 0; i < 4; ++i) a[i] = TwoNumbers(seed + static_cast<uint32_t>(i));
  MARCORO_UNROLL_LOOP
  for (int i = 0; i < 2; ++i) b[i] = TwoNumbers(seed + 7 + static_cast<uint32_t>(i));
  MARCORO_UNROLL_LOOP
  for (int chain = 0; chain < kChains; ++chain) {
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < 4; ++i) sums[chain][i] = 0;
  }
  MARCORO_ROLLED_LOOP
  for (int iteration = 0; iteration < iterations; ++iteration) {
    MARCORO_UNROLL_LOOP
    for (int chain = 0; chain < kChains; ++chain) MultiplyMatrix(sums[chain], a, b);
  }
  float sum = 0;
  MARCORO_UNROLL_LOOP
  for (int chain = 0; chain < kChains; ++chain) sum += sums[chain][0] + sums[chain][3];
  if (sum == 0.5f) *sink = sum;  // the products of such numbers are no halves: never
}

MARCORO_KERNEL(kMultiplyThreads, 1) MultiplyGroupsKernel(int iterations, float* sink) {
  const SharedArray<uint32_t> tile(0, kGroupBytes / 4);
  const auto seed = static_cast<uint32_t>(BlockIndexX() * kMultiplyThreads + ThreadIndex());
  for (int i = ThreadIndex(); i < kGroupBytes / 4; i += kMultiplyThreads) {
    tile.Store(i, TwoNumbers(static_cast<uint32_t>(i)));
  }
  FenceAsyncProxy();
  SyncBlock();
  uint32_t a[4];
  MARCORO_UNROLL_LOOP
  for (int i = 0; i < 4; ++i) a[i] = TwoNumbers(seed + static_cast<uint32_t>(i));
  float sums[kGroupColumns / 2];
  MARCORO_UNROLL_LOOP
  for (int i = 0; i < kGroupColumns / 2; ++i) sums[i] = 0;
  MARCORO_ROLLED_LOOP
  for (int iteration = 0; iteration < iterations; ++iteration) {
    FenceWarpgroupMatrix(sums);
    MARCORO_UNROLL_LOOP
    for (int step = 0; step < kGroupSteps; ++step) {
      MultiplyWarpgroupMatrix(sums, a, MatrixDescriptor(tile.Address(step * 8)));
    }
    CommitWarpgroupMatrix();
    WaitWarpgroupMatrix<0>(sums);
  }
  if (sums[0] == 0.5f) *sink = sums[0];
}

}  // namespace

void Pause(Stream stream, uint64_t nanoseconds) {
  Launch(stream, LaunchShape{}, PauseKernel, nanoseconds);
}

void ReadOnce(Stream stream, int multiprocessors, const void* data, size_t bytes, uint32_t* sink) {
  Launch(stream, {.grid_x = 2 * multiprocessors, .threads = kReadThreads}, ReadKernel,
         static_cast<const char*>(data), static_cast<int64_t>(bytes / kVectorBytes), sink);
}

double MultiplyLoop(Stream stream, int multiprocessors, bool warpgroups, int iterations,
                    float* sink) {
  const int blocks = warpgroups ? multiprocessors : 2 * multiprocessors;
  if (warpgroups) {
    Launch(stream, {.grid_x = blocks, .threads = kMultiplyThreads, .shared_bytes = kGroupBytes},
           MultiplyGroupsKernel, iterations, sink);
    return double{kFlopsOfGroup} * iterations * blocks * (kMultiplyThreads / 128);
  }
  Launch(stream, {.grid_x = blocks, .threads = kMultiplyThreads}, MultiplyKernel, iterations, sink);
  return double{kFlopsOfProduct} * kChains * iterations * blocks * (kMultiplyThreads / 32);
}

}  // namespace marcoro::cuda
