#include "kernels/cpu/thread_pool.h"

#include <atomic>
#include <cstdint>
#include <set>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace marcoro::cpu {
namespace {

TEST(ThreadPool, SizeCountsTheCaller) {
  EXPECT_EQ(ThreadPool(1).size(), 1);
  EXPECT_EQ(ThreadPool(3).size(), 3);
}

TEST(ThreadPool, RunsEachIndexOnce) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    for (int64_t count : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(count);
      pool.Run(count, [&](int64_t i) { ++runs[i]; });
      for (int64_t i = 0; i < count; ++i) EXPECT_EQ(runs[i], 1) << threads << " threads, " << i;
    }
  }
}

TEST(ThreadPool, HandsOutIndicesInIncreasingOrder) {
  ThreadPool pool(4);
  std::atomic<int64_t> highest_before_one_thread_saw_lower{0};
  pool.Run(10000, [&](int64_t i) {
    static thread_local int64_t last = -1;
    if (i < last) ++highest_before_one_thread_saw_lower;
    last = i;
  });
  EXPECT_EQ(highest_before_one_thread_saw_lower, 0);
}

TEST(ThreadPool, CallerSeesPlainWritesOfAllBodies) {
  ThreadPool pool(4);
  std::vector<int64_t> squares(64);  // not atomic: the end of Run must publish them
  for (int64_t round = 0; round < 2000; ++round) {
    pool.Run(64, [&](int64_t i) { squares[i] = i * i + round; });
    for (int64_t i = 0; i < 64; ++i) ASSERT_EQ(squares[i], i * i + round);
  }
}

TEST(ThreadPool, BodiesOfOneRunAreAllDoneBeforeTheNext) {
  ThreadPool pool(3);
  std::atomic<int> running{0};
  for (int round = 0; round < 5000; ++round) {
    pool.Run(3, [&](int64_t) {
      running.fetch_add(1);
      running.fetch_sub(1);
    });
    ASSERT_EQ(running.load(), 0);
  }
}

TEST(ThreadPool, TwoThreadsRunAtTheSameTime) {
  ThreadPool pool(2);
  std::atomic<int> arrived{0};
  // Each body waits for the other: one thread alone would never finish.
  pool.Run(2, [&](int64_t) {
    ++arrived;
    while (arrived.load() < 2) std::this_thread::yield();
  });
  EXPECT_EQ(arrived.load(), 2);
}

TEST(ThreadPool, WorkersThatSleepAreWokenEachTime) {
  // More threads than cores never spin, so that every region begins with sleeping workers.
  const int threads = static_cast<int>(std::thread::hardware_concurrency()) + 3;
  ThreadPool pool(threads);
  for (int round = 0; round < 300; ++round) {
    std::atomic<int> arrived{0};
    pool.Run(threads, [&](int64_t) {
      ++arrived;
      while (arrived.load() < threads) std::this_thread::yield();
    });
    ASSERT_EQ(arrived.load(), threads);
  }
}

TEST(ThreadPool, ManyPoolsShareFewCores) {
  std::vector<std::thread> callers;
  std::atomic<int64_t> sum{0};
  for (int caller = 0; caller < 8; ++caller) {
    callers.emplace_back([&] {
      ThreadPool pool(4);
      for (int round = 0; round < 200; ++round) pool.Run(16, [&](int64_t i) { sum += i; });
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(sum.load(), 8 * 200 * (15 * 16 / 2));
}

TEST(ThreadPool, IsDestroyedWithoutEverRunning) {
  for (int i = 0; i < 50; ++i) ThreadPool pool(4);
}

TEST(ThreadPool, ScratchIsAlignedWritableAndGrows) {
  ThreadPool pool(1);
  for (size_t bytes : {size_t{1}, size_t{100}, size_t{1} << 20, size_t{10}}) {
    char* data = static_cast<char*>(pool.Scratch(bytes));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 64, 0u);
    for (size_t i = 0; i < bytes; ++i) data[i] = 1;
  }
}

}  // namespace
}  // namespace marcoro::cpu
