// Ranks of a group that run at the same time: in the emulator its fibers, on a GPU streams of the
// one device that the test has.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <vector>

#include "kernels/cuda/all_reduce.h"
#include "kernels/cuda/runtime.h"
#include "tests/kernels/cuda/device_array.h"

namespace marcoro::cuda {

inline constexpr uint64_t kLongTime = 10'000'000'000;  // nanoseconds
#ifdef MARCORO_SIMT
inline constexpr uint64_t kShortTime = 2'000;  // looks at the clock
#else
inline constexpr uint64_t kShortTime = 50'000'000;
// Kernels that wait for kernels which are queued later must not wait for their code too.
inline const int eager = setenv("CUDA_MODULE_LOADING", "EAGER", 1);
#endif

struct GroupShape {
  int ranks = 2;
  int most_blocks = 2;
  int slot_elements = 1024;
  uint64_t patience = kLongTime;
};

// The memory of a group's ranks: slots that nobody wrote are NaN.
class Group {
 public:
  explicit Group(const GroupShape& shape) : shape_(shape) {
    const size_t head = HeadBytes();
    for (int rank = 0; rank < shape.ranks; ++rank) {
      memory_.emplace_back(PeerMemoryBytes(shape.ranks, shape.most_blocks, shape.slot_elements));
      memory_.back().CopyFrom(std::vector<uint8_t>(head, 0));
      auto pinned = AllocatePinned(sizeof(uint32_t));
      CheckDevice(pinned.status());
      failures_.push_back(static_cast<uint32_t*>(*pinned));
      *failures_.back() = 0;
#ifndef MARCORO_SIMT
      auto stream = CreateStream();
      CheckDevice(stream.status());
      streams_.push_back(*stream);
#endif
    }
  }
  ~Group() {
    for (uint32_t* failure : failures_) FreePinned(failure);
#ifndef MARCORO_SIMT
    for (const Stream stream : streams_) DestroyStream(stream);
#endif
  }
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  PeerMemory OfRank(int rank) const {
    PeerMemory peers = {.rank = rank,
                        .ranks = shape_.ranks,
                        .most_blocks = shape_.most_blocks,
                        .slot_elements = shape_.slot_elements,
                        .patience = shape_.patience,
                        .grace = kShortTime / 10,
                        .failure = failures_[static_cast<size_t>(rank)]};
    for (int peer = 0; peer < shape_.ranks; ++peer) {
      peers.memory[peer] = reinterpret_cast<char*>(memory_[static_cast<size_t>(peer)].data());
    }
    return peers;
  }

  // Queues body(stream, peers) for every rank of which `comes` is not false, and waits.
  void Run(const std::function<void(Stream, const PeerMemory&)>& body,
           const std::vector<bool>& comes = {}) const {
    std::vector<int> ranks;
    for (int rank = 0; rank < shape_.ranks; ++rank) {
      if (comes.empty() || comes[static_cast<size_t>(rank)]) ranks.push_back(rank);
    }
#ifdef MARCORO_SIMT
    std::vector<std::function<void()>> devices;
    for (const int rank : ranks) {
      devices.push_back([&body, this, rank] { body(Stream(), OfRank(rank)); });
    }
    simt::LaunchTogether(devices);
#else
    for (const int rank : ranks) body(streams_[static_cast<size_t>(rank)], OfRank(rank));
    for (const int rank : ranks) CheckDevice(Synchronize(streams_[static_cast<size_t>(rank)]));
#endif
  }

  uint32_t failure(int rank) const { return *failures_[static_cast<size_t>(rank)]; }
  std::vector<uint8_t> MemoryOf(int rank) const {
    return memory_[static_cast<size_t>(rank)].ToHost();
  }
  // As after so many exchanges that their number is about to begin anew.
  void SetNumbersToTheLargest() {
    for (auto& memory : memory_) {
      std::vector<uint8_t> head(HeadBytes(), 0xff);
      std::fill_n(head.begin(), HeadBytes(0), uint8_t{0});
      memory.CopyFrom(head);
    }
  }

 private:
  size_t HeadBytes(int blocks) const { return PeerMemoryBytes(shape_.ranks, blocks, 0); }
  size_t HeadBytes() const { return HeadBytes(shape_.most_blocks); }

  const GroupShape shape_;
  std::vector<DeviceArray<uint8_t>> memory_;
  std::vector<uint32_t*> failures_;
#ifndef MARCORO_SIMT
  std::vector<Stream> streams_;
#endif
};

}  // namespace marcoro::cuda
