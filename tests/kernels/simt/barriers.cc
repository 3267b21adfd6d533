// Barriers of blocks, warps and clusters, and what the threads of a warp tell each other.
#include "tests/kernels/simt/scheduler.h"

namespace marcoro::simt {
namespace {

bool SamePlace(const SourceLocation& a, const SourceLocation& b) {
  return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

// Counts the current thread. True for the last one.
bool Arrive(Meeting& meeting, bool orders, SourceLocation here) {
  if (!meeting.anywhere && meeting.arrived > 0 && !SamePlace(meeting.where, here)) {
    Report("threads wait at different places, the others in line " +
               std::to_string(meeting.where.line()),
           here);
  }
  meeting.where = here;
  if (orders) meeting.release.Add(run->current->clock);
  run->current->clock.Tick();
  if (++meeting.arrived < meeting.expected) return false;
  meeting.arrived = 0;
  ++meeting.generation;
  if (orders) {
    meeting.known = meeting.release.Known();
    meeting.release.Clear();
  }
  return true;
}

}  // namespace

std::string Meeting::WhatIsMissing() const {
  return std::to_string(arrived) + " of " + std::to_string(expected) + " arrived";
}

void Meet(Meeting& meeting, bool orders, SourceLocation here, const std::function<void()>& last) {
  const uint64_t generation = meeting.generation;
  if (Arrive(meeting, orders, here)) {
    last();
    WaitFor(nullptr, here);  // so that the last to arrive is not the first to go on
  } else {
    WaitFor(&meeting, here);
  }
  if (meeting.generation == generation) Fault("a barrier let a thread go too early", here);
  if (orders) run->current->clock.Adopt(meeting.known);
}

void SyncBlock(SourceLocation here) {
  Meet(run->current->block->barriers[0], /*orders=*/true, here, [] {});
}

void SyncWarps(int barrier, int threads, SourceLocation here) {
  Block& block = *run->current->block;
  if (barrier < 1 || barrier > 15 || threads <= 0 || threads % kWarpThreads != 0 ||
      threads > run->current->identity.block_threads) {
    Fault("barrier " + std::to_string(barrier) + " of " + std::to_string(threads) + " threads",
          here);
  }
  Meeting& meeting = block.barriers[static_cast<size_t>(barrier)];
  if (meeting.arrived > 0 && meeting.expected != threads) {
    Fault("the others expect " + std::to_string(meeting.expected) + " threads at this barrier",
          here);
  }
  meeting.expected = threads;
  meeting.anywhere = true;
  Meet(meeting, /*orders=*/true, here, [] {});
}

void SyncWarp(SourceLocation here) {
  Meet(run->current->warp->barrier, /*orders=*/true, here, [] {});
}

void ArriveAtCluster(SourceLocation here) {
  Thread& thread = *run->current;
  if (thread.cluster_generation) Fault("a second arrival without a wait", here);
  Meeting& meeting = thread.block->cluster->barrier;
  thread.cluster_generation = meeting.generation;
  thread.waits_at = here;
  Arrive(meeting, /*orders=*/true, here);
}

void WaitForCluster(SourceLocation here) {
  Thread& thread = *run->current;
  if (!thread.cluster_generation) Fault("a wait without an arrival", here);
  const Meeting& meeting = thread.block->cluster->barrier;
  if (meeting.generation == *thread.cluster_generation) {
    WaitFor(&meeting, here);
  } else {
    WaitFor(nullptr, here);
  }
  thread.cluster_generation.reset();
  thread.clock.Learn(meeting.known);
}

void MeetInWarp(void* mine, SourceLocation here,
                const std::function<void(const std::array<void*, kWarpThreads>&)>& compute) {
  Warp& warp = *run->current->warp;
  warp.lanes[static_cast<size_t>(run->current->identity.index % kWarpThreads)] = mine;
  Meet(warp.meeting, /*orders=*/false, here, [&] { compute(warp.lanes); });
}

void MeetInWarpgroup(
    void* mine, SourceLocation here,
    const std::function<void(const std::array<void*, kWarpgroupThreads>&)>& compute) {
  const auto index = static_cast<size_t>(run->current->identity.index);
  auto& groups = run->current->block->warpgroups;
  if (index / kWarpgroupThreads >= groups.size()) {
    Fault("a function of a warpgroup, called outside of four whole warps", here);
  }
  Warpgroup& group = groups[index / kWarpgroupThreads];
  group.threads[index % kWarpgroupThreads] = mine;
  Meet(group.meeting, /*orders=*/false, here, [&] { compute(group.threads); });
}

WarpValues ExchangeInWarp(uint64_t value, SourceLocation here) {
  struct Exchange {
    uint64_t mine;
    WarpValues all;
  } exchange = {value, {}};
  MeetInWarp(&exchange, here, [](const auto& lanes) {
    WarpValues all;
    for (int i = 0; i < kWarpThreads; ++i) all.lane[i] = static_cast<Exchange*>(lanes[i])->mine;
    for (void* lane : lanes) static_cast<Exchange*>(lane)->all = all;
  });
  return exchange.all;
}

uint32_t Ballot(bool value, SourceLocation here) {
  const WarpValues values = ExchangeInWarp(value ? 1 : 0, here);
  uint32_t bits = 0;
  for (int lane = 0; lane < kWarpThreads; ++lane) {
    bits |= static_cast<uint32_t>(values.lane[lane]) << lane;
  }
  return bits;
}

}  // namespace marcoro::simt
