// What runs: the threads of the blocks that are there at once, what they wait for, and their copies
// and products that are under way.
#pragma once

#include <array>
#include <boost/context/fiber.hpp>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "tests/kernels/simt/clock.h"
#include "tests/kernels/simt/shared_memory.h"
#include "tests/kernels/simt/simt.h"

namespace marcoro::simt {

inline constexpr int kMostThreads = 1024;

// What a thread can wait for: that the count of how often it happened changes.
struct Event {
  uint64_t generation = 0;

  virtual ~Event() = default;
  virtual std::string WhatIsMissing() const = 0;
};

// Threads that wait for each other. The last one to arrive lets all of them go.
struct Meeting final : Event {
  int expected = 0;
  int arrived = 0;
  bool anywhere = false;  // threads may come from different places of the source
  SourceLocation where;
  Release release;
  std::shared_ptr<const Times> known;  // of those who met last

  std::string WhatIsMissing() const override;
};

struct Mbarrier final : Event {
  int expected = 0;
  int pending = 0;    // arrivals that this phase still needs
  int64_t bytes = 0;  // that this phase still needs
  bool published = false;
  int initializer = -1;  // the thread
  int32_t who = -1;      // of the copies that it ends
  Release release;
  std::shared_ptr<const Times> known;

  std::string WhatIsMissing() const override;
};

struct Cluster;

struct PendingCopy {
  void* shared;
  const void* global;
  size_t bytes;
  bool valid;
  SourceLocation where;
};

// A bulk copy that is under way.
struct BulkCopy {
  const Cluster* cluster;
  std::function<void()> end;
  SourceLocation where;
};

// A lane's part of a product of its warpgroup.
// What the E4M3 code in a byte of a word means.
double CodeValue(uint32_t word, int byte);

struct PendingProduct {
  float* d;
  int columns;
  MatrixElement element;
  std::array<uint32_t, 4> a;
  uint64_t descriptor;
  bool accumulate;
  Clock issued;
  SourceLocation where;
};

struct Warp {
  Meeting meeting;  // in functions of the warp
  Meeting barrier;
  std::array<void*, kWarpThreads> lanes;  // what those that arrived passed
  int laziness = 0;                       // quarters of the turns that it skips
  int32_t products = -1;                  // the `who` of its reads in products of its warpgroup
  uint32_t product_reads = 0;
  Clock::Lesson lesson;
};

struct Warpgroup {
  Meeting meeting;
  std::array<void*, kWarpgroupThreads> threads;
};

struct Block {
  int rank = 0;
  Cluster* cluster = nullptr;
  std::unique_ptr<SharedState> shared;
  std::vector<Warp> warps;
  std::vector<Warpgroup> warpgroups;
  std::array<Meeting, 16> barriers;
  std::map<const void*, Mbarrier> mbarriers;
  int first_thread = 0;  // in the cluster
  int running_threads = 0;
};

// Of a thread's fences between the generic and the asynchronous proxy: what lies behind them.
struct ProxyFence {
  uint32_t when;
  uint32_t copies;
};

// The products of a thread that are under way.
struct Products {
  std::deque<std::vector<PendingProduct>> groups;  // committed, oldest first
  std::vector<PendingProduct> uncommitted;
  std::map<float*, std::vector<float>> accumulators;  // their values; what D holds is poisoned
  bool fenced = false;                                // since the last commit
};

struct Thread {
  ThreadIdentity identity;
  int number = 0;  // in the cluster
  Block* block = nullptr;
  Warp* warp = nullptr;
  boost::context::stack_context stack;
  boost::context::fiber fiber;
  void* fake_stack = nullptr;  // AddressSanitizer's
  bool done = false;
  // What it waits for; null when it can run.
  const Event* waits_for = nullptr;
  uint64_t generation = 0;
  SourceLocation waits_at;
  bool spins = false;
  Clock clock;
  std::deque<std::vector<PendingCopy>> copies;  // committed groups, oldest first
  std::vector<PendingCopy> uncommitted;
  uint32_t started_copies = 0;
  std::deque<uint32_t> last_copies;  // of each committed group, the number of its last copy
  std::vector<ProxyFence> fences;
  Products products;
  std::optional<uint64_t> cluster_generation;  // between arrival at and wait for the cluster
};

struct Kernel {
  LaunchShape shape;
  std::function<void()> body;
};

struct Cluster {
  const Kernel* kernel = nullptr;
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::unique_ptr<Thread>> threads;
  Meeting barrier;
  int others = 0;  // beside threads and their copies, those that have moments
  int running_threads = 0;

  // The `who` of moments.
  int CopiesOf(int thread) const { return static_cast<int>(threads.capacity()) + thread; }
  int AddOther() { return 2 * static_cast<int>(threads.capacity()) + others++; }
  std::string Name(const Moment& moment) const;
};

struct Run {
  std::vector<std::unique_ptr<Cluster>> clusters;
  Thread* current = nullptr;
  boost::context::fiber scheduler;  // where the current thread goes back to
  bool abandoned = false;
  std::vector<BulkCopy> bulk_copies;
};

// The one that runs.
extern Run* run;

std::mt19937_64& RandomSource();

// Misuse after which the launch cannot go on. Does not return.
[[noreturn]] void Fault(const std::string& text, SourceLocation here);

// The current thread stops here until the event happens again; or, with none, until its next turn.
void WaitFor(const Event* event, SourceLocation here);

// Returns when all have arrived. `last` runs in the last one before it goes on. `orders`: what the
// threads did before is ordered before what they do after.
void Meet(Meeting& meeting, bool orders, SourceLocation here, const std::function<void()>& last);

// The block of the cluster whose shared memory holds an address. A fault if there is none, or if
// that block has ended.
Block& BlockOf(const void* address, size_t bytes, SourceLocation here);
// Whether what a thread stored at that moment can be read past the generic proxy by someone with
// this clock.
bool IsFenced(const Cluster& cluster, const Moment& write, const Clock& order);
void ReportRace(const SharedState::Race& race, bool writes, SourceLocation here);

}  // namespace marcoro::simt
