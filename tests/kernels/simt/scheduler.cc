#include "tests/kernels/simt/scheduler.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <utility>

#include "tests/kernels/simt/stacks.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace marcoro::simt {

Run* run = nullptr;

namespace {

namespace context = boost::context;

constexpr size_t kMostReports = 100;
constexpr int kMostThreadsAtOnce = 64 * 1024;
// Turns in which threads did nothing but wait in loops, after which nothing is expected to change.
constexpr int kMostIdleTurns = 20'000;

std::mt19937_64 random_source(1);  // NOLINT(bugprone-random-generator-seed): repeatable
ReportCollector* collector = nullptr;
std::vector<std::deque<Kernel>>* recording = nullptr;

// Ends the fiber of an abandoned launch.
struct Abandoned {};

// A fiber's stack is Thread's own: the fiber frees nothing.
struct OwnedElsewhere {
  context::stack_context allocate() { return {}; }
  void deallocate(context::stack_context&) {}
};

#ifdef __SANITIZE_ADDRESS__
const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;

void LeaveScheduler(Thread& thread, void** fake_stack) {
  __sanitizer_start_switch_fiber(
      fake_stack, static_cast<const char*>(thread.stack.sp) - thread.stack.size, thread.stack.size);
}
void EnterScheduler(void* fake_stack) {
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}
void LeaveThread(Thread& thread) {
  __sanitizer_start_switch_fiber(thread.done ? nullptr : &thread.fake_stack, scheduler_stack,
                                 scheduler_stack_bytes);
}
void EnterThread(Thread& thread) {
  __sanitizer_finish_switch_fiber(thread.fake_stack, &scheduler_stack, &scheduler_stack_bytes);
}
#else
void LeaveScheduler(Thread&, void**) {}
void EnterScheduler(void*) {}
void LeaveThread(Thread&) {}
void EnterThread(Thread&) {}
#endif

// The current thread stops here; the scheduler picks who goes on.
void Yield() {
  Thread& thread = *run->current;
  LeaveThread(thread);
  run->scheduler = std::move(run->scheduler).resume();
  EnterThread(thread);
  if (run->abandoned) throw Abandoned();
}

void CheckEnd(const Thread& thread) {
  if (!thread.uncommitted.empty() || !thread.copies.empty()) {
    Report("a thread ends while its copies are under way",
           thread.copies.empty() ? thread.uncommitted[0].where : thread.copies[0][0].where);
  }
  const Products& products = thread.products;
  if (!products.uncommitted.empty() || !products.groups.empty()) {
    Report("a thread ends while its matrix products are under way",
           products.groups.empty() ? products.uncommitted[0].where : products.groups[0][0].where);
  }
  if (thread.cluster_generation) {
    Report("a thread ends between its arrival at the cluster's barrier and the wait",
           thread.waits_at);
  }
}

// The body of a fiber.
context::fiber RunThread(Thread* thread, context::fiber&& scheduler) {
  run->scheduler = std::move(scheduler);
  EnterThread(*thread);
  if (!run->abandoned) {
    try {
      thread->block->cluster->kernel->body();
      CheckEnd(*thread);
    } catch (const Abandoned&) {
    }
  }
  thread->done = true;
  --thread->block->running_threads;
  --thread->block->cluster->running_threads;
  LeaveThread(*thread);
  return std::move(run->scheduler);
}

void AddThread(Cluster& cluster, Block& block, const ThreadIdentity& identity) {
  auto thread = std::make_unique<Thread>();
  thread->identity = identity;
  thread->number = block.first_thread + identity.index;
  thread->block = &block;
  thread->warp = &block.warps[static_cast<size_t>(identity.index / kWarpThreads)];
  thread->clock = Clock(thread->number, cluster.CopiesOf(thread->number));
  thread->stack = TheStacks().Take();
  thread->fiber =
      context::fiber(std::allocator_arg,
                     context::preallocated(thread->stack.sp, thread->stack.size, thread->stack),
                     OwnedElsewhere(), [pointer = thread.get()](context::fiber&& scheduler) {
                       return RunThread(pointer, std::move(scheduler));
                     });
  cluster.threads.push_back(std::move(thread));
}

void AddBlock(Cluster& cluster, ThreadIdentity identity) {
  const LaunchShape& shape = cluster.kernel->shape;
  auto block = std::make_unique<Block>();
  block->rank = identity.block_rank;
  block->cluster = &cluster;
  block->shared = std::make_unique<SharedState>(static_cast<size_t>(shape.shared_bytes));
  block->warps.resize(static_cast<size_t>(shape.threads / kWarpThreads));
  block->warpgroups.resize(static_cast<size_t>(shape.threads / kWarpgroupThreads));
  block->barriers[0].expected = shape.threads;
  block->first_thread = block->rank * shape.threads;
  block->running_threads = shape.threads;
  for (Warp& warp : block->warps) {
    warp.meeting.expected = kWarpThreads;
    warp.barrier.expected = kWarpThreads;
    warp.laziness = static_cast<int>(random_source() % 4);
  }
  for (Warpgroup& group : block->warpgroups) group.meeting.expected = kWarpgroupThreads;
  for (int index = 0; index < shape.threads; ++index) {
    identity.index = index;
    AddThread(cluster, *block, identity);
  }
  cluster.blocks.push_back(std::move(block));
}

int Clusters(const LaunchShape& shape) {
  return shape.grid_x / shape.cluster_blocks * shape.grid_y * shape.grid_z;
}

void AddCluster(const Kernel& kernel, int index) {
  const LaunchShape& shape = kernel.shape;
  const int clusters_x = shape.grid_x / shape.cluster_blocks;
  auto cluster = std::make_unique<Cluster>();
  cluster->kernel = &kernel;
  cluster->running_threads = shape.threads * shape.cluster_blocks;
  cluster->threads.reserve(static_cast<size_t>(cluster->running_threads));
  cluster->barrier.expected = cluster->running_threads;
  cluster->barrier.anywhere = true;
  for (int rank = 0; rank < shape.cluster_blocks; ++rank) {
    AddBlock(*cluster, {.index = 0,
                        .block_threads = shape.threads,
                        .block_x = index % clusters_x * shape.cluster_blocks + rank,
                        .block_y = index / clusters_x % shape.grid_y,
                        .block_z = index / clusters_x / shape.grid_y,
                        .grid_x = shape.grid_x,
                        .grid_y = shape.grid_y,
                        .grid_z = shape.grid_z,
                        .block_rank = rank,
                        .cluster_blocks = shape.cluster_blocks});
  }
  run->clusters.push_back(std::move(cluster));
}

bool Waits(const Thread& thread) {
  return thread.waits_for != nullptr && thread.waits_for->generation == thread.generation;
}

void Resume(Thread& thread) {
  run->current = &thread;
  thread.waits_for = nullptr;
  thread.spins = false;
  void* fake_stack = nullptr;
  LeaveScheduler(thread, &fake_stack);
  thread.fiber = std::move(thread.fiber).resume();
  EnterScheduler(fake_stack);
}

void Abandon() {
  run->abandoned = true;
  for (const auto& cluster : run->clusters) {
    for (const auto& thread : cluster->threads) {
      if (!thread->done) Resume(*thread);
    }
  }
  run->bulk_copies.clear();
}

// Nobody can go on: says where they wait, and what for.
void ReportDeadlock() {
  std::set<std::pair<std::string, unsigned>> places;
  for (const auto& cluster : run->clusters) {
    for (const auto& thread : cluster->threads) {
      if (thread->done) continue;
      const SourceLocation& where = thread->waits_at;
      if (!places.emplace(where.file_name(), where.line()).second) continue;
      Report("threads wait for what never comes: " + (thread->waits_for == nullptr
                                                          ? std::string("nobody sets the flag")
                                                          : thread->waits_for->WhatIsMissing()),
             where);
    }
  }
  Abandon();
}

// Of the threads that can run, those that get a turn.
void ChooseThreads(std::vector<Thread*>& chosen) {
  chosen.clear();
  std::vector<Thread*> skipped;
  for (const auto& cluster : run->clusters) {
    for (const auto& block : cluster->blocks) {
      for (size_t w = 0; w < block->warps.size(); ++w) {
        const bool skip = static_cast<int>(random_source() % 4) < block->warps[w].laziness;
        for (int lane = 0; lane < kWarpThreads; ++lane) {
          const size_t number = static_cast<size_t>(block->first_thread) + w * kWarpThreads +
                                static_cast<size_t>(lane);
          Thread* thread = cluster->threads[number].get();
          if (!thread->done && !Waits(*thread)) (skip ? skipped : chosen).push_back(thread);
        }
      }
    }
  }
  if (chosen.empty()) chosen.swap(skipped);
  std::shuffle(chosen.begin(), chosen.end(), random_source);
}

// Some of the bulk copies that are under way end.
void EndBulkCopies(bool at_least_one) {
  std::vector<BulkCopy> all = std::exchange(run->bulk_copies, {});
  std::shuffle(all.begin(), all.end(), random_source);
  for (auto& copy : all) {
    if (at_least_one || random_source() % 2 == 0) {
      at_least_one = false;
      copy.end();
    } else {
      run->bulk_copies.push_back(std::move(copy));
    }
  }
}

// Gives every thread that can run a turn, in random order: cheaper than a choice before every
// switch. False if nobody can run any more.
bool RunTurn(std::vector<Thread*>& chosen, int& idle_turns) {
  ChooseThreads(chosen);
  if (chosen.empty() && run->bulk_copies.empty()) return false;
  EndBulkCopies(chosen.empty());
  bool idle = run->bulk_copies.empty();
  for (Thread* thread : chosen) {
    Resume(*thread);
    if (run->abandoned) {
      Abandon();
      return false;
    }
    idle = idle && thread->spins;
  }
  idle_turns = idle ? idle_turns + 1 : 0;
  return idle_turns < kMostIdleTurns;
}

void RemoveClusters(const Kernel* kernel) {
  std::erase_if(run->clusters, [kernel](const auto& cluster) {
    if (cluster->kernel != kernel) return false;
    std::erase_if(run->bulk_copies, [&](const BulkCopy& copy) {
      if (copy.cluster != cluster.get()) return false;
      Report("a block ends while this copy into it is under way", copy.where);
      return true;
    });
    for (const auto& thread : cluster->threads) TheStacks().GiveBack(thread->stack);
    return true;
  });
}

bool IsDone(const Kernel& kernel) {
  return std::all_of(run->clusters.begin(), run->clusters.end(), [&](const auto& cluster) {
    return cluster->kernel != &kernel || cluster->running_threads == 0;
  });
}

void CheckShape(const LaunchShape& shape) {
  const bool ok = shape.grid_x > 0 && shape.grid_y > 0 && shape.grid_z > 0 &&
                  shape.grid_y <= 65535 && shape.grid_z <= 65535 && shape.threads > 0 &&
                  shape.threads <= kMostThreads && shape.threads % kWarpThreads == 0 &&
                  shape.shared_bytes >= 0 && shape.shared_bytes <= 227 * 1024 &&
                  shape.cluster_blocks > 0 && shape.cluster_blocks <= 8 &&
                  shape.grid_x % shape.cluster_blocks == 0;
  if (!ok) {
    std::fprintf(stderr, "simt: a launch that no GPU takes\n");
    std::abort();
  }
}

// Runs the first kernel of each queue, and behind each that ends the next one.
void RunQueues(std::vector<std::deque<Kernel>> queues) {
  Run now;
  run = &now;
  std::vector<const Kernel*> running(queues.size());
  std::vector<Thread*> chosen;
  int idle_turns = 0;
  bool left = true;
  while (left && !now.abandoned) {
    left = false;
    for (size_t i = 0; i < queues.size(); ++i) {
      if (running[i] != nullptr && IsDone(*running[i])) {
        RemoveClusters(std::exchange(running[i], nullptr));
        queues[i].pop_front();
      }
      if (running[i] == nullptr && !queues[i].empty()) {
        running[i] = &queues[i].front();
        const LaunchShape& shape = running[i]->shape;
        const int clusters = Clusters(shape);
        if (int64_t{clusters} * shape.cluster_blocks * shape.threads > kMostThreadsAtOnce) {
          std::fprintf(stderr, "simt: too many threads to run together\n");
          std::abort();
        }
        for (int c = 0; c < clusters; ++c) AddCluster(*running[i], c);
      }
      left = left || running[i] != nullptr;
    }
    if (left && !RunTurn(chosen, idle_turns) && !now.abandoned) {
      const bool done = std::all_of(now.clusters.begin(), now.clusters.end(),
                                    [](const auto& c) { return c->running_threads == 0; });
      if (!done) ReportDeadlock();
    }
  }
  for (const Kernel* kernel : running) {
    if (kernel != nullptr) RemoveClusters(kernel);
  }
  run = nullptr;
}

// Runs one cluster after the other.
void RunAlone(const Kernel& kernel) {
  Run now;
  run = &now;
  std::vector<int> order(static_cast<size_t>(Clusters(kernel.shape)));
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
  std::shuffle(order.begin(), order.end(), random_source);
  std::vector<Thread*> chosen;
  for (const int cluster : order) {
    AddCluster(kernel, cluster);
    int idle_turns = 0;
    while (now.clusters[0]->running_threads > 0) {
      if (RunTurn(chosen, idle_turns)) continue;
      if (!now.abandoned && now.clusters[0]->running_threads > 0) ReportDeadlock();
    }
    RemoveClusters(&kernel);
    if (now.abandoned) break;
  }
  run = nullptr;
}

}  // namespace

std::mt19937_64& RandomSource() { return random_source; }

void SetSeed(uint64_t seed) { random_source.seed(seed); }

void Launch(const LaunchShape& shape, const std::function<void()>& body) {
  CheckShape(shape);
  if (recording != nullptr) {
    recording->back().push_back({shape, body});
  } else {
    // Ranks that are threads of one program take turns.
    static std::mutex one_at_a_time;
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    RunAlone({shape, body});
  }
}

void LaunchTogether(const std::vector<std::function<void()>>& devices) {
  std::vector<std::deque<Kernel>> queues;
  recording = &queues;
  for (const auto& launch : devices) {
    queues.emplace_back();
    launch();
  }
  recording = nullptr;
  RunQueues(std::move(queues));
}

ReportCollector::ReportCollector() : outer_(collector) { collector = this; }
ReportCollector::~ReportCollector() { collector = outer_; }

void Report(const std::string& text, SourceLocation here) {
  const std::string line =
      std::string(here.file_name()) + ":" + std::to_string(here.line()) + ": " + text;
  if (collector == nullptr) {
    std::fprintf(stderr, "simt: %s\n", line.c_str());
    std::abort();
  }
  if (collector->reports_.size() < kMostReports) collector->reports_.push_back(line);
}

void Fault(const std::string& text, SourceLocation here) {
  Report(text, here);
  run->abandoned = true;
  throw Abandoned();
}

void WaitFor(const Event* event, SourceLocation here) {
  Thread& thread = *run->current;
  thread.waits_for = event;
  if (event != nullptr) thread.generation = event->generation;
  thread.waits_at = here;
  Yield();
}

void Pause() { Yield(); }

void SpinPause(SourceLocation here) {
  run->current->spins = true;
  WaitFor(nullptr, here);
}

const ThreadIdentity& CurrentThread() { return run->current->identity; }

std::string Cluster::Name(const Moment& moment) const {
  const auto count = static_cast<int>(threads.capacity());
  const auto thread = [&](int number) {
    const Thread& it = *threads[static_cast<size_t>(number)];
    return "thread " + std::to_string(it.identity.index) +
           (blocks.size() > 1 ? " of block " + std::to_string(it.block->rank) : std::string());
  };
  if (moment.who < count) return thread(moment.who);
  if (moment.who < 2 * count) return "an asynchronous copy of " + thread(moment.who - count);
  return "a bulk copy or a matrix product";
}

}  // namespace marcoro::simt
