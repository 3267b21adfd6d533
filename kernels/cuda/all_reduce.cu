// A block takes pieces of slot_elements (16 KB at 4096), so that a decode step's message of one
// token is one block's and one of 128 tokens is 128 blocks'. Each piece is one exchange
// (all_reduce_exchange.h): per rank and piece (ranks - 1) · 16 KB leave over the links in lines of
// whole warps (512 bytes), 4 vectors of a thread under way at a time, and as much is read back from
// the rank's own memory. The one way to the peers, not the bytes, is the time of a piece; blocks
// beyond the first hide it. At 8 ranks the links carry 7 times the message where a ring would carry
// 1.75: this is for messages up to some hundred KB.
#include <algorithm>

#include "kernels/cuda/all_reduce.h"
#include "kernels/cuda/all_reduce_exchange.h"
#include "kernels/cuda/device/kernel_parameter.h"

namespace marcoro::cuda {
namespace {

constexpr int kBatch = 4;  // vectors of a thread at a time
constexpr int kBatchElements = kBatch * kExchangeStep;

struct Piece {
  int64_t begin;
  int elements;
};

MARCORO_DEVICE Piece PieceOf(const PeerMemory& peers, int64_t piece, int64_t count) {
  const int64_t begin = piece * peers.slot_elements;
  const int64_t left = count - begin;
  return {begin, left < peers.slot_elements ? static_cast<int>(left) : peers.slot_elements};
}

MARCORO_DEVICE void LoadBatch(const float* from, int first, int elements, bool aligned,
                              Float4 (&batch)[kBatch]) {
  MARCORO_UNROLL_LOOP
  for (int v = 0; v < kBatch; ++v) {
    const int i = first + v * kExchangeStep;
    batch[v] = LoadFour(from + i, elements - i, aligned);
  }
}

template <int kRanks>
MARCORO_KERNEL(kExchangeThreads, 1)
AllReduceKernel(MARCORO_CONSTANT_PARAMETER PeerMemory peers, float* data, int64_t count,
                bool aligned) {
  Exchanges exchanges(peers);
  const int thread_first = ThreadIndex() * kVector;
  for (int64_t p = BlockIndexX(); p * peers.slot_elements < count; p += GridX()) {
    const Piece piece = PieceOf(peers, p, count);
    float* part = data + piece.begin;
    if (exchanges.Begin()) {
      for (int first = thread_first; first < piece.elements; first += kBatchElements) {
        Float4 own[kBatch];
        LoadBatch(part, first, piece.elements, aligned, own);
        WriteToPeers(exchanges, kRanks, first, piece.elements, own);
      }
    }
    const bool complete = exchanges.Finish();
    for (int first = thread_first; first < piece.elements; first += kBatchElements) {
      Float4 own[kBatch];
      LoadBatch(part, first, piece.elements, aligned, own);
      MARCORO_UNROLL_LOOP
      for (int v = 0; v < kBatch; ++v) {
        const int i = first + v * kExchangeStep;
        if (i >= piece.elements) break;
        const Float4 sum =
            complete ? SumOfRanks<kRanks>(exchanges, peers.rank, i, own[v]) : FourNans();
        StoreFour(part + i, sum, piece.elements - i, aligned);
      }
    }
  }
  exchanges.Keep();
}

// Rank 0's part of a piece: own and the others' beside each other.
MARCORO_DEVICE void TakeGathered(const PeerMemory& peers, const Exchanges& exchanges,
                                 const Piece& piece, bool complete, const float* send,
                                 int64_t count, float* receive, bool aligned) {
  for (int i = ThreadIndex() * kVector; i < piece.elements; i += kExchangeStep) {
    const int left = piece.elements - i;
    for (int rank = 0; rank < peers.ranks; ++rank) {
      const Float4 from = !complete   ? FourNans()
                          : rank == 0 ? LoadFour(send + piece.begin + i, left, aligned)
                                      : LoadFour(exchanges.SlotFrom(rank) + i, left, true);
      StoreFour(receive + rank * count + piece.begin + i, from, left, aligned);
    }
  }
}

// Ranks other than 0 write to rank 0 only; the flags are all ranks', as the slots' reuse needs.
MARCORO_KERNEL(kExchangeThreads, 1)
GatherKernel(MARCORO_CONSTANT_PARAMETER PeerMemory peers, const float* send, int64_t count,
             float* receive, bool aligned) {
  Exchanges exchanges(peers);
  const int thread_first = ThreadIndex() * kVector;
  for (int64_t p = BlockIndexX(); p * peers.slot_elements < count; p += GridX()) {
    const Piece piece = PieceOf(peers, p, count);
    if (exchanges.Begin() && peers.rank != 0) {
      float* slot = exchanges.SlotAtPeer(peers.ranks - peers.rank);
      for (int i = thread_first; i < piece.elements; i += kExchangeStep) {
        *reinterpret_cast<Float4*>(slot + i) =
            LoadFour(send + piece.begin + i, piece.elements - i, aligned);
      }
    }
    const bool complete = exchanges.Finish();
    if (peers.rank == 0) {
      TakeGathered(peers, exchanges, piece, complete, send, count, receive, aligned);
    }
  }
  exchanges.Keep();
}

// Rank 0 writes to all others; the flags are all ranks', as the slots' reuse needs. Some hundred
// ids: the ways are the time, not the width of what a thread writes.
MARCORO_KERNEL(kExchangeThreads, 1)
BroadcastKernel(MARCORO_CONSTANT_PARAMETER PeerMemory peers, int32_t* ids, int64_t count) {
  Exchanges exchanges(peers);
  for (int64_t p = BlockIndexX(); p * peers.slot_elements < count; p += GridX()) {
    const Piece piece = PieceOf(peers, p, count);
    int32_t* part = ids + piece.begin;
    if (exchanges.Begin() && peers.rank == 0) {
      for (int distance = 1; distance < peers.ranks; ++distance) {
        auto* slot = reinterpret_cast<int32_t*>(exchanges.SlotAtPeer(distance));
        for (int i = ThreadIndex(); i < piece.elements; i += kExchangeThreads) slot[i] = part[i];
      }
    }
    const bool complete = exchanges.Finish();
    if (complete && peers.rank == 0) continue;
    const auto* slot = reinterpret_cast<const int32_t*>(exchanges.SlotFrom(0));
    for (int i = ThreadIndex(); i < piece.elements; i += kExchangeThreads) {
      part[i] = complete ? slot[i] : 0;
    }
  }
  exchanges.Keep();
}

// A thread takes a vector of all parts: with 8 of them, 32 KB of a block under way.
template <int kRanks>
MARCORO_KERNEL(kExchangeThreads, 1)
TreeSumKernel(MARCORO_CONSTANT_PARAMETER TreeParts parts, int64_t count, float* out, bool aligned) {
  const int64_t step = static_cast<int64_t>(GridX()) * kExchangeStep;
  for (int64_t i =
           (static_cast<int64_t>(BlockIndexX()) * kExchangeThreads + ThreadIndex()) * kVector;
       i < count; i += step) {
    const int left = count - i < kVector ? static_cast<int>(count - i) : kVector;
    Float4 part[kRanks];
    MARCORO_UNROLL_LOOP
    for (int rank = 0; rank < kRanks; ++rank) {
      part[rank] = LoadFour(parts.part[rank] + i, left, aligned);
    }
    AddTree(part);
    StoreFour(out + i, part[0], left, aligned);
  }
}

constexpr int kMostTreeSumBlocks = 1024;

LaunchShape ExchangeShape(const PeerMemory& peers, int64_t count) {
  const int64_t pieces = (count + peers.slot_elements - 1) / peers.slot_elements;
  return {.grid_x = static_cast<int>(std::min<int64_t>(pieces, peers.most_blocks)),
          .threads = kExchangeThreads,
          .shared_bytes = kExchangeSharedBytes};
}

}  // namespace

size_t PeerMemoryBytes(int ranks, int most_blocks, int slot_elements) {
  const size_t blocks = static_cast<size_t>(most_blocks);
  return (1 + blocks) * kLineBytes + 2 * blocks * static_cast<size_t>(ranks) *
                                         static_cast<size_t>(slot_elements) * sizeof(float);
}

void AllReduceTree(Stream stream, const PeerMemory& peers, float* data, int64_t count) {
  if (count == 0) return;
  const LaunchShape shape = ExchangeShape(peers, count);
  const bool aligned = RowsAreAligned(data, 0, sizeof(float));
  if (peers.ranks == 2)
    return Launch(stream, shape, AllReduceKernel<2>, peers, data, count, aligned);
  if (peers.ranks == 4)
    return Launch(stream, shape, AllReduceKernel<4>, peers, data, count, aligned);
  Launch(stream, shape, AllReduceKernel<8>, peers, data, count, aligned);
}

void GatherToRoot(Stream stream, const PeerMemory& peers, const float* send, int64_t count,
                  float* receive) {
  if (count == 0) return;
  const bool aligned = RowsAreAligned(send, 0, sizeof(float)) &&
                       (peers.rank != 0 || RowsAreAligned(receive, count, sizeof(float)));
  Launch(stream, ExchangeShape(peers, count), GatherKernel, peers, send, count, receive, aligned);
}

void BroadcastIds(Stream stream, const PeerMemory& peers, int32_t* ids, int64_t count) {
  if (count == 0) return;
  Launch(stream, ExchangeShape(peers, count), BroadcastKernel, peers, ids, count);
}

void TreeSum(Stream stream, const TreeParts& parts, int ranks, int64_t count, float* out) {
  if (count == 0) return;
  bool aligned = RowsAreAligned(out, 0, sizeof(float));
  for (int rank = 0; rank < ranks; ++rank) {
    aligned = aligned && RowsAreAligned(parts.part[rank], 0, sizeof(float));
  }
  const int64_t blocks = (count + kExchangeStep - 1) / kExchangeStep;
  const LaunchShape shape = {
      .grid_x = static_cast<int>(std::min<int64_t>(blocks, kMostTreeSumBlocks)),
      .threads = kExchangeThreads};
  if (ranks == 2) return Launch(stream, shape, TreeSumKernel<2>, parts, count, out, aligned);
  if (ranks == 4) return Launch(stream, shape, TreeSumKernel<4>, parts, count, out, aligned);
  Launch(stream, shape, TreeSumKernel<8>, parts, count, out, aligned);
}

}  // namespace marcoro::cuda
