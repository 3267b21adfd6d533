// Mbarriers, and the bulk and tensor copies that end at them.
#include <algorithm>
#include <utility>

#include "tests/kernels/simt/scheduler.h"

namespace marcoro::simt {
namespace {

constexpr size_t kBarrierBytes = 8;
constexpr int kMostArrivals = (1 << 20) - 1;
constexpr int64_t kMostBytes = (1 << 20) - 1;
constexpr int kBulkAlignment = 16;
constexpr int kSwizzleBytes = 128;

// The one at this address; the caller is ordered behind its initialization.
Mbarrier& Find(void* address, SourceLocation here) {
  Block& block = BlockOf(address, kBarrierBytes, here);
  const auto found = block.mbarriers.find(address);
  if (found == block.mbarriers.end()) Fault("no mbarrier was initialized here", here);
  const Clock& clock = run->current->clock;
  const auto race = block.shared->FindWrite(
      address, kBarrierBytes, [&](const Moment& write) { return clock.IsAfter(write); });
  if (race) ReportRace(*race, /*writes=*/false, here);
  Mbarrier& barrier = found->second;
  if (&block != run->current->block && !barrier.published) {
    Fault("an mbarrier of another block that was not published", here);
  }
  return barrier;
}

void EndPhase(Mbarrier& barrier) {
  if (barrier.pending > 0 || barrier.bytes != 0) return;
  ++barrier.generation;
  barrier.pending = barrier.expected;
  barrier.release.Add(Moment{barrier.who, static_cast<uint32_t>(barrier.generation)});
  barrier.known = barrier.release.Known();
}

// What one bulk copy does to one block.
struct Transfer {
  Block* block;
  Mbarrier* barrier;
  uint64_t generation;  // of the barrier when the copy began
  int64_t bytes;
  std::function<void()> write;
  SourceLocation where;
};

void End(const Transfer& transfer) {
  if (transfer.block->running_threads == 0) {
    Report("a bulk copy into a block that has ended", transfer.where);
  }
  if (transfer.barrier->generation != transfer.generation) {
    Report("a bulk copy that its mbarrier's phase did not expect: the phase is over",
           transfer.where);
  }
  transfer.write();
  transfer.barrier->bytes -= transfer.bytes;
  EndPhase(*transfer.barrier);
}

// The caller's own block, or those in the mask.
std::vector<int> TargetBlocks(uint32_t block_mask, SourceLocation here) {
  const ThreadIdentity& thread = run->current->identity;
  if (block_mask == 0) return {thread.block_rank};
  if (block_mask >> thread.cluster_blocks != 0) Fault("a block that the cluster has not", here);
  std::vector<int> blocks;
  for (int rank = 0; rank < thread.cluster_blocks; ++rank) {
    if ((block_mask >> rank & 1) != 0) blocks.push_back(rank);
  }
  return blocks;
}

// Begins a copy of `bytes` to the same place of each block of the mask; `write` writes them there.
void Begin(void* shared, int64_t bytes, void* ended, uint32_t block_mask, SourceLocation here,
           const std::function<void(char* shared)>& write) {
  const Clock& clock = run->current->clock;
  for (const int rank : TargetBlocks(block_mask, here)) {
    auto* target = static_cast<char*>(SharedOfBlock(shared, rank, here));
    Mbarrier& barrier = Find(SharedOfBlock(ended, rank, here), here);
    if (!barrier.published) {
      Report("a bulk copy ends at an mbarrier that was not published", here);
    }
    Block& block = BlockOf(target, static_cast<size_t>(bytes), here);
    const Moment at = {barrier.who, static_cast<uint32_t>(barrier.generation) + 1};
    if (const auto race = block.shared->NoteWrite(target, static_cast<size_t>(bytes), clock, at)) {
      ReportRace(*race, /*writes=*/true, here);
    }
    const Transfer transfer = {
        &block, &barrier, barrier.generation, bytes, [write, target] { write(target); }, here};
    run->bulk_copies.push_back({block.cluster, [transfer] { End(transfer); }, here});
  }
}

bool IsAligned(const void* address, int alignment) {
  return reinterpret_cast<uintptr_t>(address) % static_cast<uintptr_t>(alignment) == 0;
}

// The box's rows, one behind the other; zeros outside of the matrix.
void WriteBox(const TensorMap& map, int64_t row, int64_t column, char* shared) {
  const int64_t row_bytes = int64_t{map.box_columns} * map.element_bytes;
  const auto base = reinterpret_cast<uintptr_t>(shared);
  for (int64_t r = 0; r < map.box_rows; ++r) {
    for (int64_t c = 0; c < map.box_columns; ++c) {
      uintptr_t to = base + static_cast<uintptr_t>(r * row_bytes + c * map.element_bytes);
      if (map.swizzled) to ^= (to >> 7 & 7) << 4;
      char* element = shared + (to - base);
      const bool inside =
          row + r >= 0 && row + r < map.rows && column + c >= 0 && column + c < map.columns;
      if (inside) {
        std::memcpy(element,
                    static_cast<const char*>(map.data) + (row + r) * map.stride_bytes +
                        (column + c) * map.element_bytes,
                    static_cast<size_t>(map.element_bytes));
      } else {
        std::memset(element, 0, static_cast<size_t>(map.element_bytes));
      }
    }
  }
}

}  // namespace

std::string Mbarrier::WhatIsMissing() const {
  return std::to_string(pending) + " of " + std::to_string(expected) + " arrivals and " +
         std::to_string(bytes) + " bytes of the mbarrier's phase are missing";
}

void InitializeMbarrier(void* barrier, int arrivals, SourceLocation here) {
  if (arrivals < 1 || arrivals > kMostArrivals) {
    Fault("an mbarrier for " + std::to_string(arrivals) + " arrivals", here);
  }
  NoteSharedWrite(barrier, kBarrierBytes, here);
  Block& block = *run->current->block;
  Mbarrier& state = block.mbarriers[barrier];
  if (state.who < 0) state.who = block.cluster->AddOther();
  state.expected = arrivals;
  state.pending = arrivals;
  state.bytes = 0;
  state.published = false;
  state.initializer = run->current->number;
  // Its phases count on, so that moments of its earlier use stay in the past; parities begin anew.
  state.generation += state.generation % 2;
}

void PublishMbarriers() {
  Thread& thread = *run->current;
  for (auto& [address, barrier] : thread.block->mbarriers) {
    if (barrier.initializer == thread.number) barrier.published = true;
  }
}

void ArriveMbarrier(void* barrier, int bytes, SourceLocation here) {
  Mbarrier& state = Find(barrier, here);
  if (state.pending == 0) Fault("more arrivals than the mbarrier's phase expects", here);
  if (bytes < 0 || state.bytes + bytes > kMostBytes) {
    Fault("an mbarrier that expects " + std::to_string(state.bytes + bytes) + " bytes", here);
  }
  state.bytes += bytes;
  --state.pending;
  state.release.Add(run->current->clock);
  run->current->clock.Tick();
  EndPhase(state);
}

void WaitMbarrier(void* barrier, uint32_t parity, SourceLocation here) {
  Mbarrier& state = Find(barrier, here);
  while (state.generation % 2 == parity) WaitFor(&state, here);
  if (state.known != nullptr) run->current->clock.Learn(state.known);
}

void CopyBulk(void* shared, const void* global, int bytes, void* ended, uint32_t block_mask,
              SourceLocation here) {
  if (bytes <= 0 || bytes % kBulkAlignment != 0 || !IsAligned(shared, kBulkAlignment) ||
      !IsAligned(global, kBulkAlignment)) {
    Fault("a bulk copy whose bytes or addresses are no multiples of 16", here);
  }
  Begin(shared, bytes, ended, block_mask, here,
        [global, bytes](char* target) { std::memcpy(target, global, static_cast<size_t>(bytes)); });
}

bool IsTensorMap(const TensorMap& map) {
  const int64_t row_bytes = int64_t{map.box_columns} * map.element_bytes;
  return map.data != nullptr && IsAligned(map.data, kBulkAlignment) &&
         (map.element_bytes == 1 || map.element_bytes == 2 || map.element_bytes == 4) &&
         map.rows > 0 && map.columns > 0 && map.stride_bytes > 0 &&
         map.stride_bytes % kBulkAlignment == 0 &&
         map.stride_bytes >= map.columns * map.element_bytes && map.box_rows > 0 &&
         map.box_rows <= 256 && map.box_columns > 0 && map.box_columns <= 256 &&
         row_bytes % kBulkAlignment == 0 && (!map.swizzled || row_bytes == kSwizzleBytes);
}

void CopyTensor(void* shared, const TensorMap& map, int row, int column, void* ended,
                uint32_t block_mask, SourceLocation here) {
  if (!IsTensorMap(map)) Fault("a tensor map that was not encoded", here);
  constexpr int kSwizzledAlignment = 1024;
  if (!IsAligned(shared, map.swizzled ? kSwizzledAlignment : kSwizzleBytes)) {
    Fault("a tensor copy to an address that is not aligned", here);
  }
  const int64_t bytes = int64_t{map.box_rows} * map.box_columns * map.element_bytes;
  Begin(shared, bytes, ended, block_mask, here,
        [map, row, column](char* target) { WriteBox(map, row, column, target); });
}

}  // namespace marcoro::simt
