// An emulator of a GPU's thread blocks, on one CPU thread: what kernels/cuda/device stands on where
// MARCORO_SIMT is defined.
//
// A thread of a block is a fiber. One fiber runs until it waits (at a barrier, in a warp function,
// for a copy); which goes on next is random, from a seed, and some warps fall behind others: a
// missing barrier shows as a changed bit under some seed. Bulk copies end at a random time before
// somebody waits for them. The blocks of a grid run one after the other in random order, those of a
// cluster together, those of LaunchTogether too.
//
// Misuse is reported with file and line, and ends the process unless a test collects the reports:
// - a read or a write of shared memory that nothing orders behind another thread's write or read
//   (barriers, SyncWarp and mbarriers order; shuffles and matrix functions do not), nor behind a
//   copy or before a matrix product that is under way;
// - shared memory, stored by threads, that the copy engine or a warpgroup's product reads without a
//   proxy fence; another block's, before that block is known to run or after it ended;
// - accesses beyond an array or beyond shared memory, and unaligned ones;
// - barriers that part of the threads never reach, also because they ended before (which a GPU may
//   forgive), or reach at another place; mbarriers with more arrivals than expected; loops that
//   wait for a flag nobody sets;
// - copies and products that nobody waits for, and accumulators touched while a product runs.
//
// What it cannot vouch for, to be checked first on a real GPU:
// - time, and anything that depends on it; occupancy and registers;
// - global memory: races there are not looked for, and every write is seen at once by all, so a
//   missing Arrive, StoreFlag or LoadFlag shows only where the interleaving itself does harm;
//   kernels that are launched together are assumed to fit on the GPU together;
// - the PTX bodies of the wrappers: constraints, encodings, state spaces. Of descriptors the
//   emulator reads the fields that it knows of; the driver's encoding of tensor maps it never sees;
// - the last bits of matrix products (sums here are in double and rounded once per instruction; a
//   GPU truncates, in an order of its own) and of approximate functions (Exp2);
// - what divergence costs or breaks within a warp (the .aligned forms), and whether registers of A
//   were written behind the last FenceWarpgroupMatrix;
// - programmatic dependent launch: kernels here never overlap the one ahead;
// - captured graphs: what a driver makes of them; here one is a list of what was queued;
// - reads of global memory that kernels ahead wrote, past the non-coherent path (LoadStreaming).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <string>
#include <utility>
#include <vector>

namespace marcoro::simt {

using SourceLocation = std::source_location;

// What was queued on a stream while that was captured, to be run later and more than once.
struct Recording {
  std::vector<std::function<void()>> work;
  std::string misuse;  // the first call that a capture does not allow; empty: there was none
};

struct StreamState {
  Recording* recording = nullptr;
};

// Order is the call order: there is nothing to wait for. One without a state cannot be captured.
struct Stream {
  StreamState* state = nullptr;
};

// A place in a stream: all that is before it has happened.
struct StreamEvent {};

// Runs the work, or records it while the stream is captured.
inline void Queue(Stream stream, std::function<void()> work) {
  if (stream.state == nullptr || stream.state->recording == nullptr) return work();
  stream.state->recording->work.push_back(std::move(work));
}

struct LaunchShape {
  int grid_x = 1;
  int grid_y = 1;
  int grid_z = 1;
  int threads = 32;
  int shared_bytes = 0;
  int cluster_blocks = 1;
};

// Runs body once as every thread of the grid.
void Launch(const LaunchShape& shape, const std::function<void()>& body);

// Calls each function, which launches kernels: they do not run yet. Then runs them, those of one
// function one after the other, those of different functions at the same time, as on several
// devices; all blocks of a kernel are there at once. For kernels that wait for each other.
void LaunchTogether(const std::vector<std::function<void()>>& devices);

// Seeds the choice of fibers and blocks of the launches that follow.
void SetSeed(uint64_t seed);

// While one lives, misuse is collected instead of ending the process. At most a hundred reports are
// kept. A launch that cannot go on is abandoned.
class ReportCollector {
 public:
  ReportCollector();
  ~ReportCollector();
  ReportCollector(const ReportCollector&) = delete;
  ReportCollector& operator=(const ReportCollector&) = delete;
  const std::vector<std::string>& reports() const { return reports_; }

 private:
  friend void Report(const std::string& text, SourceLocation here);
  std::vector<std::string> reports_;
  ReportCollector* outer_;
};

// While one lives, products of warpgroups, of at least so many columns, truncate where those of
// warps round to nearest, as a GPU may have it whose kinds of products differ.
class TruncatedWarpgroupProducts {
 public:
  explicit TruncatedWarpgroupProducts(int least_columns = 8);
  ~TruncatedWarpgroupProducts();
  TruncatedWarpgroupProducts(const TruncatedWarpgroupProducts&) = delete;
  TruncatedWarpgroupProducts& operator=(const TruncatedWarpgroupProducts&) = delete;
};

// Below: what the wrappers of kernels/cuda/device call. Only while a launch runs.

struct ThreadIdentity {
  int index;
  int block_threads;
  int block_x, block_y, block_z;
  int grid_x, grid_y, grid_z;
  int block_rank;  // within the cluster
  int cluster_blocks;
};
const ThreadIdentity& CurrentThread();

void SyncBlock(SourceLocation here);
void SyncWarps(int barrier, int threads, SourceLocation here);
void SyncWarp(SourceLocation here);
void ArriveAtCluster(SourceLocation here);
void WaitForCluster(SourceLocation here);

inline constexpr int kWarpThreads = 32;
inline constexpr int kWarpgroupThreads = 128;

// The last lane of the warp to arrive computes for all, from what each passed. Pointers to what
// lives on the lanes' stacks are good until then. Orders no accesses to memory.
void MeetInWarp(void* mine, SourceLocation here,
                const std::function<void(const std::array<void*, kWarpThreads>&)>& compute);
// The same for the four warps of a warpgroup.
void MeetInWarpgroup(
    void* mine, SourceLocation here,
    const std::function<void(const std::array<void*, kWarpgroupThreads>&)>& compute);

// Every lane passes 8 bytes and gets those of all 32 lanes.
struct WarpValues {
  uint64_t lane[kWarpThreads];
};
WarpValues ExchangeInWarp(uint64_t value, SourceLocation here);

template <typename T>
T Shuffle(T value, int lane, SourceLocation here) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = ExchangeInWarp(bits, here).lane[lane & 31];
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
uint32_t Ballot(bool value, SourceLocation here);

// Of the block that runs.
char* SharedMemory();
// Where the same address lies in the shared memory of another block of the cluster.
void* SharedOfBlock(const void* shared, int block_rank, SourceLocation here);
void CheckShared(const void* begin, size_t bytes, size_t alignment, SourceLocation here);
void CheckIndex(const void* array, int index, size_t access_bytes, size_t element_bytes, int count,
                SourceLocation here);
void NoteSharedRead(const void* address, size_t bytes, SourceLocation here);
void NoteSharedWrite(void* address, size_t bytes, SourceLocation here);

// Others may run now.
void Pause();
// The same, in a loop that waits.
void SpinPause(SourceLocation here);

void CopyAsync(void* shared, const void* global, size_t bytes, bool valid, SourceLocation here);
void CommitCopies();
void WaitCopies(int groups);

void InitializeMbarrier(void* barrier, int arrivals, SourceLocation here);
void PublishMbarriers();
void ArriveMbarrier(void* barrier, int bytes, SourceLocation here);
void WaitMbarrier(void* barrier, uint32_t parity, SourceLocation here);

// A block mask of 0 means the block of the caller only.
void CopyBulk(void* shared, const void* global, int bytes, void* ended, uint32_t block_mask,
              SourceLocation here);
void FenceAsyncProxy();

// As cuda::TensorMapShape.
struct TensorMap {
  const void* data = nullptr;
  int element_bytes = 0;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t stride_bytes = 0;
  int box_rows = 0;
  int box_columns = 0;
  bool swizzled = false;
};
bool IsTensorMap(const TensorMap& map);
void CopyTensor(void* shared, const TensorMap& map, int row, int column, void* ended,
                uint32_t block_mask, SourceLocation here);

void MultiplyMatrix(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                    SourceLocation here);
void MultiplyCodeMatrix(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                        SourceLocation here);
void LoadMatrices(uint32_t (&r)[4], const void* shared_row, bool transposed, SourceLocation here);

enum class MatrixElement { kBf16, kE4M3 };
void FenceWarpgroupMatrix(float* d, SourceLocation here);
void MultiplyWarpgroupMatrix(float* d, int columns, MatrixElement element, const uint32_t (&a)[4],
                             uint64_t descriptor, bool accumulate, SourceLocation here);
void CommitWarpgroupMatrix(SourceLocation here);
void WaitWarpgroupMatrix(int groups, const float* d, SourceLocation here);

void Report(const std::string& text, SourceLocation here);

}  // namespace marcoro::simt
