// Sums over the ranks of a group whose GPUs can write each other's memory (or are one GPU), each in
// one kernel: every rank writes its part into the memory of all others, tells them so, and adds up
// what came to its own. For messages whose time is the way and not the bytes; larger ones are
// NCCL's (worker/collective/nccl.h), which uses TreeSum.
//
// All ranks launch the same calls with the same shapes in the same order on one stream each. Every
// element is the tree ((0+1)+(2+3))+… over the ranks, so that all ranks hold the same bits,
// whatever the call. The launches hold no state of the host's: a captured one can be replayed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/launch.h"
#include "kernels/tensor.h"

namespace marcoro::cuda {

inline constexpr int kMostRanks = 8;

// What the kernels of one rank are told about all. Each rank has PeerMemoryBytes of device memory,
// zeroed before any rank launches, which all ranks can write.
struct PeerMemory {
  int rank = 0;
  int ranks = 1;                  // 2, 4 or 8
  char* memory[kMostRanks] = {};  // of each rank, at the address that this rank's kernels use
  int most_blocks = 128;          // of a kernel
  int slot_elements = 4096;       // what a block passes on at once; a multiple of 4
  // How long a block waits for a peer, in nanoseconds. Then *failure, in the host's memory and
  // unsigned from 0, becomes 1 + the rank that did not come.
  uint64_t patience = 0;
  // How long the block goes on holding the stream after that, so that the host can end the process
  // before anything is computed from what is missing. Then all of its output becomes NaN, and later
  // calls do the same at once, without touching the peers' memory.
  uint64_t grace = 0;
  uint32_t* failure = nullptr;
};

size_t PeerMemoryBytes(int ranks, int most_blocks, int slot_elements);

// data (count) becomes its sum over the ranks.
void AllReduceTree(Stream stream, const PeerMemory& peers, float* data, int64_t count);

// residual (T, H) F32 += the sum of delta (T, H) F32 over the ranks, then out (T, H) BF16 =
// RmsNorm(residual): the bits of AllReduceTree followed by RmsNorm. delta's rows lie side by side,
// and are unspecified afterwards.
void AllReduceAddRmsNorm(Stream stream, const PeerMemory& peers, const Tensor& residual,
                         const Tensor& delta, const float* weight, float epsilon,
                         const Tensor& out);

// receive (ranks * count) on rank 0 becomes every rank's send (count), side by side. send may be
// receive on rank 0.
void GatherToRoot(Stream stream, const PeerMemory& peers, const float* send, int64_t count,
                  float* receive);

// ids (count) becomes rank 0's; zeros, which any table has a row of, once a peer has not come.
void BroadcastIds(Stream stream, const PeerMemory& peers, int32_t* ids, int64_t count);

// out (count) = the tree over the parts, of which there are 2, 4 or 8. out may be one of them.
struct TreeParts {
  const float* part[kMostRanks] = {};
};
void TreeSum(Stream stream, const TreeParts& parts, int ranks, int64_t count, float* out);

}  // namespace marcoro::cuda
