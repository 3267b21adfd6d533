// Accesses to shared memory, and copies of sm_80 into it.
#include <algorithm>

#include "tests/kernels/simt/scheduler.h"

namespace marcoro::simt {

char* SharedMemory() { return run->current->block->shared->data(); }

void* SharedOfBlock(const void* shared, int block_rank, SourceLocation here) {
  const Thread& thread = *run->current;
  const Cluster& cluster = *thread.block->cluster;
  if (block_rank < 0 || static_cast<size_t>(block_rank) >= cluster.blocks.size()) {
    Fault("block " + std::to_string(block_rank) + " of a cluster of " +
              std::to_string(cluster.blocks.size()),
          here);
  }
  const Block& block = *cluster.blocks[static_cast<size_t>(block_rank)];
  bool is_known = &block == thread.block;
  for (int i = 0; i < thread.identity.block_threads && !is_known; ++i) {
    is_known = thread.clock.IsAfter({block.first_thread + i, 1});
  }
  if (!is_known) {
    Report("nothing says yet that block " + std::to_string(block_rank) + " of the cluster runs",
           here);
  }
  return block.shared->data() + (static_cast<const char*>(shared) - SharedMemory());
}

void CheckShared(const void* begin, size_t bytes, size_t alignment, SourceLocation here) {
  if (!run->current->block->shared->Holds(begin, bytes)) {
    Fault("an array goes beyond the block's shared memory", here);
  }
  if (reinterpret_cast<uintptr_t>(begin) % alignment != 0) {
    Fault("an array that is not aligned to " + std::to_string(alignment) + " bytes", here);
  }
}

void CheckIndex(const void* array, int index, size_t access_bytes, size_t element_bytes, int count,
                SourceLocation here) {
  const size_t begin = static_cast<size_t>(index) * element_bytes;
  if (index < 0 || begin + access_bytes > static_cast<size_t>(count) * element_bytes) {
    Fault("element " + std::to_string(index) + " of an array of " + std::to_string(count), here);
  }
  if ((reinterpret_cast<uintptr_t>(array) + begin) % std::min<size_t>(access_bytes, 16) != 0) {
    Fault("element " + std::to_string(index) + " is not aligned to " +
              std::to_string(access_bytes) + " bytes",
          here);
  }
}

Block& BlockOf(const void* address, size_t bytes, SourceLocation here) {
  Block& mine = *run->current->block;
  if (mine.shared->Holds(address, bytes)) return mine;
  for (const auto& block : mine.cluster->blocks) {
    if (!block->shared->Holds(address, bytes)) continue;
    if (block->running_threads == 0) {
      Fault("the shared memory of block " + std::to_string(block->rank) + ", which has ended",
            here);
    }
    return *block;
  }
  Fault("not an address of shared memory", here);
}

bool IsFenced(const Cluster& cluster, const Moment& write, const Clock& order) {
  const auto count = static_cast<int>(cluster.threads.size());
  if (write.who < 0 || write.who >= 2 * count) return true;
  const bool copied = write.who >= count;
  const int number = write.who % count;
  const auto& fences = cluster.threads[static_cast<size_t>(number)]->fences;
  const auto fence = std::lower_bound(
      fences.begin(), fences.end(), write.when,
      [copied](const ProxyFence& f, uint32_t when) { return (copied ? f.copies : f.when) < when; });
  return fence != fences.end() && order.IsAfter({number, fence->when});
}

void ReportRace(const SharedState::Race& race, bool writes, SourceLocation here) {
  Report((writes ? "overwrites byte " : "reads byte ") + std::to_string(race.byte) +
             " of shared memory, which " + run->current->block->cluster->Name(race.other) +
             (race.other_wrote ? " wrote" : " read") + " without a barrier since",
         here);
}

void NoteSharedRead(const void* address, size_t bytes, SourceLocation here) {
  const Clock& clock = run->current->clock;
  SharedState& state = *BlockOf(address, bytes, here).shared;
  if (const auto race = state.NoteRead(address, bytes, clock, clock.now())) {
    ReportRace(*race, /*writes=*/false, here);
  }
}

void NoteSharedWrite(void* address, size_t bytes, SourceLocation here) {
  const Clock& clock = run->current->clock;
  SharedState& state = *BlockOf(address, bytes, here).shared;
  if (const auto race = state.NoteWrite(address, bytes, clock, clock.now())) {
    ReportRace(*race, /*writes=*/true, here);
  }
}

// From here on the bytes are the copy's: who reads them is ordered behind WaitCopies.
void CopyAsync(void* shared, const void* global, size_t bytes, bool valid, SourceLocation here) {
  if (reinterpret_cast<uintptr_t>(shared) % bytes != 0 ||
      (valid && reinterpret_cast<uintptr_t>(global) % bytes != 0)) {
    Fault("an asynchronous copy of unaligned addresses", here);
  }
  Thread& thread = *run->current;
  SharedState& state = *BlockOf(shared, bytes, here).shared;
  const Moment at = thread.clock.copy(++thread.started_copies);
  if (const auto race = state.NoteWrite(shared, bytes, thread.clock, at)) {
    ReportRace(*race, /*writes=*/true, here);
  }
  thread.uncommitted.push_back({shared, global, bytes, valid, here});
}

void CommitCopies() {
  Thread& thread = *run->current;
  thread.copies.push_back(std::exchange(thread.uncommitted, {}));
  thread.last_copies.push_back(thread.started_copies);
}

void WaitCopies(int groups) {
  Thread& thread = *run->current;
  while (thread.copies.size() > static_cast<size_t>(groups)) {
    for (const PendingCopy& copy : thread.copies.front()) {
      if (copy.valid) {
        std::memcpy(copy.shared, copy.global, copy.bytes);
      } else {
        std::memset(copy.shared, 0, copy.bytes);
      }
    }
    thread.clock.EndCopies(thread.last_copies.front());
    thread.copies.pop_front();
    thread.last_copies.pop_front();
  }
}

void FenceAsyncProxy() {
  Thread& thread = *run->current;
  thread.fences.push_back({thread.clock.now().when, thread.clock.ended_copies()});
  thread.clock.Tick();
}

}  // namespace marcoro::simt
