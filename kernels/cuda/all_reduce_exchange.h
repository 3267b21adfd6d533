// How the blocks of kernels that run at the same time on several ranks pass data to each other.
//
// Block b of a rank deals with block b of its peers only. A rank's memory holds, for each block, a
// flag of each rank, the number of exchanges that the block has had, and two sets of slots, one
// slot of each rank. In exchange n a block writes its part into its slot of set n % 2 in every
// peer's memory, then its flag there becomes n; when all flags in its own memory have come to n, it
// reads its own slots.
//
// No second barrier is needed: a block writes into set n % 2 of a peer only when that peer's flag
// has come to n - 1, which the peer sent after it had read what it needed of n - 2. A flag is never
// more than one ahead of the reader's number, and numbers may wrap around. The numbers live in
// device memory and go on from kernel to kernel: so a captured launch can be replayed.
//
// Everything that crosses the links is a write, so an exchange takes one way for the data, its
// acknowledgement (which the flag's release waits for) and one way for the flag; waiting and adding
// read the rank's own memory.
#pragma once

#include "kernels/cuda/all_reduce.h"
#include "kernels/cuda/device/flags.h"
#include "kernels/cuda/device/numbers.h"
#include "kernels/cuda/device/shared_memory.h"
#include "kernels/cuda/device/system_clock.h"
#include "kernels/cuda/device/thread.h"
#include "kernels/cuda/device/vectors.h"

namespace marcoro::cuda {

// Layout of a rank's memory: a head of one line, a line for each block, the slots.
inline constexpr int kLineBytes = 128;
inline constexpr int kCountWord = kMostRanks;  // of a block's line, behind the ranks' flags

inline constexpr int kExchangeThreads = 256;
// What Exchange needs of a block's shared memory.
inline constexpr int kExchangeSharedBytes = 16;
// Elements that a block touches at a time.
inline constexpr int kExchangeStep = kExchangeThreads * kVector;

// Set when this rank gave up.
MARCORO_DEVICE uint32_t* GaveUpWord(const PeerMemory& peers) {
  return reinterpret_cast<uint32_t*>(peers.memory[peers.rank]);
}

MARCORO_DEVICE uint32_t* LineOfBlock(const PeerMemory& peers, int owner) {
  return reinterpret_cast<uint32_t*>(peers.memory[owner] + (1 + BlockIndexX()) * kLineBytes);
}

// Where `writer` puts its part of an exchange in `owner`'s memory.
MARCORO_DEVICE float* SlotOf(const PeerMemory& peers, int owner, int writer, uint32_t exchange) {
  const int set = static_cast<int>(exchange & 1u);
  const int64_t slot =
      (static_cast<int64_t>(set) * peers.most_blocks + BlockIndexX()) * peers.ranks + writer;
  char* slots = peers.memory[owner] + (1 + peers.most_blocks) * kLineBytes;
  return reinterpret_cast<float*>(slots) + slot * peers.slot_elements;
}

// Waits until the flag has come to the number. False if it did not in time.
MARCORO_DEVICE bool WaitForFlag(const PeerMemory& peers, int peer, const uint32_t* flag,
                                uint32_t number) {
  const auto has_come = [&] { return static_cast<int32_t>(LoadFlag(flag) - number) >= 0; };
  if (has_come()) return true;
  const uint64_t begin = SystemNanoseconds();
  while (SystemNanoseconds() - begin < peers.patience) {
    if (has_come()) return true;
    SpinPause();
  }
  StoreFlag(GaveUpWord(peers), 1);
  StoreFlag(peers.failure, static_cast<uint32_t>(peer) + 1);
  while (SystemNanoseconds() - begin < peers.patience + peers.grace) SpinPause();
  return false;
}

// A block's side of its exchanges. All threads call all functions.
class Exchanges {
 public:
  MARCORO_DEVICE explicit Exchanges(const PeerMemory& peers) : peers_(peers), shared_(0, 2) {
    // One thread looks, so that all threads of the block see the same.
    if (ThreadIndex() == 0) {
      shared_.Store(0, LineOfBlock(peers_, peers_.rank)[kCountWord]);
      shared_.Store(1, LoadFlag(GaveUpWord(peers_)));
    }
    SyncBlock();
    number_ = shared_.Load(0);
    alive_ = shared_.Load(1) == 0;
  }

  // Before a part is written: false once a peer has not come. Then none may be written.
  MARCORO_DEVICE bool Begin() {
    ++number_;
    return alive_;
  }

  // This block's slot in the memory of the peer that is `distance` behind it. In this order no two
  // ranks begin with the same peer.
  MARCORO_DEVICE float* SlotAtPeer(int distance) const {
    const int peer = (peers_.rank + distance) & (peers_.ranks - 1);
    return SlotOf(peers_, peer, peers_.rank, number_);
  }
  MARCORO_DEVICE const float* SlotFrom(int peer) const {
    return SlotOf(peers_, peers_.rank, peer, number_);
  }

  // A barrier. Tells all peers that this block's part is written, and waits for theirs. False if
  // one did not come, now or earlier.
  MARCORO_DEVICE bool Finish() {
    SyncBlock();
    if (!alive_) return false;
    if (Warp() == 0) {
      const int peer = Lane();
      bool came = true;
      if (peer < peers_.ranks && peer != peers_.rank) {
        StoreFlag(LineOfBlock(peers_, peer) + peers_.rank, number_);
        came = WaitForFlag(peers_, peer, LineOfBlock(peers_, peers_.rank) + peer, number_);
      }
      const uint32_t lost = Ballot(!came);
      if (Lane() == 0) shared_.Store(0, lost);
    }
    SyncBlock();
    alive_ = shared_.Load(0) == 0;
    return alive_;
  }

  // At the end of the kernel, behind a Finish.
  MARCORO_DEVICE void Keep() const {
    if (ThreadIndex() == 0) LineOfBlock(peers_, peers_.rank)[kCountWord] = number_;
  }

 private:
  const PeerMemory& peers_;
  const SharedArray<uint32_t> shared_;
  uint32_t number_;
  bool alive_;
};

// part[0] becomes the tree over all.
template <int kRanks>
MARCORO_DEVICE void AddTree(Float4 (&part)[kRanks]) {
  MARCORO_UNROLL_LOOP
  for (int distance = 1; distance < kRanks; distance *= 2) {
    MARCORO_UNROLL_LOOP
    for (int rank = 0; rank < kRanks; rank += 2 * distance) {
      MARCORO_UNROLL_LOOP
      for (int e = 0; e < kVector; ++e) {
        part[rank].value[e] = Add(part[rank].value[e], part[rank + distance].value[e]);
      }
    }
  }
}

// Writes vectors [first, first + kVector), [first + kExchangeStep, …) of a part of `elements` into
// this block's slots.
template <int kVectors>
MARCORO_DEVICE void WriteToPeers(const Exchanges& exchanges, int ranks, int first, int elements,
                                 const Float4 (&own)[kVectors]) {
  for (int distance = 1; distance < ranks; ++distance) {
    float* slot = exchanges.SlotAtPeer(distance);
    MARCORO_UNROLL_LOOP
    for (int v = 0; v < kVectors; ++v) {
      const int i = first + v * kExchangeStep;
      if (i < elements) *reinterpret_cast<Float4*>(slot + i) = own[v];
    }
  }
}

// The sum of elements [i, i + kVector) over the ranks, behind Finish.
template <int kRanks>
MARCORO_DEVICE Float4 SumOfRanks(const Exchanges& exchanges, int own_rank, int i,
                                 const Float4& own) {
  Float4 part[kRanks];
  MARCORO_UNROLL_LOOP
  for (int rank = 0; rank < kRanks; ++rank) {
    part[rank] =
        rank == own_rank ? own : *reinterpret_cast<const Float4*>(exchanges.SlotFrom(rank) + i);
  }
  AddTree(part);
  return part[0];
}

MARCORO_DEVICE Float4 FourNans() {
  const float nan = BitsToFloat(0x7fc00000u);
  return {{nan, nan, nan, nan}};
}

}  // namespace marcoro::cuda
