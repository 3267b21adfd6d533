// Who may be destroyed when: handles inside callbacks, handles while workers die, the router before
// its handles; and replicas that come and go.
#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "coordinator/routing/worker_router.h"
#include "gtest/gtest.h"
#include "tests/coordinator/routing/recording_sink.h"
#include "tests/coordinator/routing/router_test_support.h"

namespace marcoro {
namespace {

TEST(Lifetime, AHandleMayBeDestroyedInsideAnUpdate) {
  FakeWorker worker({.automatic = false});
  const auto router = MakeRouter(OptionsFor({&worker}));
  auto sink = std::make_shared<RecordingSink>();
  std::unique_ptr<RoutedSequence> sequence;
  sink->on_update = [&] { sequence.reset(); };
  sequence = router->Start(MakeSubmit(1, 50), 0, sink);
  ASSERT_TRUE(worker.WaitForSequences(1));
  worker.Step();
  ASSERT_TRUE(worker.WaitForCancels(1));
  EXPECT_EQ(worker.sequences(), 0);
  EXPECT_EQ(sink->updates(), 1);
  EXPECT_FALSE(sink->done());
}

TEST(Lifetime, AHandleMayBeDestroyedInsideTheEnd) {
  FakeWorker worker({.automatic = false});
  const auto router = MakeRouter(OptionsFor({&worker}));
  auto sink = std::make_shared<RecordingSink>();
  std::unique_ptr<RoutedSequence> sequence;
  absl::Mutex mutex;
  bool destroyed = false;
  sink->on_done = [&] {
    sequence.reset();
    absl::MutexLock lock(&mutex);
    destroyed = true;
  };
  sequence = router->Start(MakeSubmit(1, 1), 0, sink);
  ASSERT_TRUE(worker.WaitForSequences(1));
  worker.Step();
  absl::MutexLock lock(&mutex);
  EXPECT_TRUE(mutex.AwaitWithTimeout(absl::Condition(&destroyed), absl::Seconds(30)));
}

TEST(Lifetime, ASequenceMayBeStartedInsideTheEndOfAnother) {
  FakeWorker worker;
  const auto router = MakeRouter(OptionsFor({&worker}));
  auto first = std::make_shared<RecordingSink>();
  auto second = std::make_shared<RecordingSink>();
  absl::Mutex mutex;
  std::unique_ptr<RoutedSequence> next;
  first->on_done = [&] {
    absl::MutexLock lock(&mutex);
    next = router->Start(MakeSubmit(2, 5), 0, second);
  };
  const auto sequence = router->Start(MakeSubmit(1, 5), 0, first);
  EXPECT_TRUE(second->WaitDone().ok());
  EXPECT_EQ(second->tokens(), FakeWorker::Tokens(MakeSubmit(2, 5)));
  absl::MutexLock lock(&mutex);
  next.reset();
}

TEST(Lifetime, FailuresDoNotCallTheThreadThatIsInsideStart) {
  FakeWorker worker({.state = worker::v1::WORKER_STATE_LOADING});
  RouterOptions options = OptionsFor({&worker});
  options.max_waiting = 0;
  const auto router = MakeRouter(options);
  auto sink = std::make_shared<RecordingSink>();
  absl::Mutex mutex;
  std::thread::id caller;
  sink->on_done = [&] {
    // Would not return if Start called it on a thread that holds the lock.
    absl::MutexLock lock(&mutex);
    caller = std::this_thread::get_id();
  };
  std::unique_ptr<RoutedSequence> sequence;
  {
    absl::MutexLock lock(&mutex);
    sequence = router->Start(MakeSubmit(1, 5), 0, sink);
  }
  absl::MutexLock lock(&mutex);
  const auto called = [&] { return caller != std::thread::id(); };
  EXPECT_TRUE(mutex.AwaitWithTimeout(absl::Condition(&called), absl::Seconds(30)));
  EXPECT_NE(caller, std::this_thread::get_id());
}

TEST(Lifetime, TheSinkIsReleasedAfterTheEnd) {
  FakeWorker worker;
  const auto router = MakeRouter(OptionsFor({&worker}));
  auto sink = std::make_shared<RecordingSink>();
  const auto sequence = router->Start(MakeSubmit(1, 5), 0, sink);
  EXPECT_TRUE(sink->WaitDone().ok());
  EXPECT_TRUE(Eventually([&] { return sink.use_count() == 1; }));
}

TEST(Lifetime, TheRoutersEndFailsWhatIsInFlight) {
  FakeWorker ready({.automatic = false});
  auto router = MakeRouter(OptionsFor({&ready}));
  auto running = std::make_shared<RecordingSink>();
  const auto handle = router->Start(MakeSubmit(1, 5), 0, running);
  ASSERT_TRUE(ready.WaitForSequences(1));
  ready.Step();
  ASSERT_TRUE(running->WaitTokens(1));
  ready.SetState(worker::v1::WORKER_STATE_LOADING);
  ASSERT_TRUE(WaitReady(*router, 0));
  auto waiting = std::make_shared<RecordingSink>();
  const auto other_handle = router->Start(MakeSubmit(2, 5), 0, waiting);
  router.reset();
  // Known when the destructor returns; the handles go later.
  EXPECT_TRUE(running->done());
  EXPECT_TRUE(waiting->done());
  EXPECT_EQ(running->WaitDone().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(waiting->WaitDone().code(), absl::StatusCode::kUnavailable);
}

TEST(Lifetime, NothingIsCalledAfterTheHandleIsGone) {
  FakeWorker a({.step_interval = absl::Microseconds(200)});
  FakeWorker b({.step_interval = absl::Microseconds(200)});
  RouterOptions options = OptionsFor({&a, &b});
  options.max_replays = 1000;
  auto router = MakeRouter(options);

  std::atomic<bool> stop{false};
  std::thread killer([&] {
    std::mt19937 random(5);
    while (!stop.load()) {
      FakeWorker& victim = random() % 2 == 0 ? a : b;
      victim.DieAfterTokens(static_cast<int>(random() % 20));
      Eventually([&] { return stop.load() || victim.streams() == 0 || victim.sequences() == 0; });
      victim.Restart();
    }
  });
  std::vector<std::thread> clients;
  for (uint32_t client = 0; client < 4; ++client) {
    clients.emplace_back([&, client] {
      std::mt19937 random(client);
      for (uint64_t i = 0; i < 100; ++i) {
        auto sink = std::make_shared<RecordingSink>();
        auto sequence = router->Start(MakeSubmit(i, 30), 0, sink);
        const size_t tokens = random() % 4;
        ASSERT_TRUE(sink->WaitTokens(tokens));
        sequence.reset();
        const int calls = sink->calls();
        // Let go when no callback can come any more. One may have been running.
        ASSERT_TRUE(Eventually([&] { return sink.use_count() == 1; }));
        EXPECT_LE(sink->calls(), calls + 1);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  stop.store(true);
  killer.join();
  // The workers forget what was cancelled.
  EXPECT_TRUE(a.WaitForSequences(0));
  EXPECT_TRUE(b.WaitForSequences(0));
}

// Answers with what the test sets.
class Directory {
 public:
  ResolveFunction Function() {
    return
        [this](const std::string&, const std::string&) -> absl::StatusOr<std::vector<std::string>> {
          absl::MutexLock lock(&mutex_);
          ++answers_;
          return addresses_;
        };
  }
  // Returns when an answer given after the change has been taken in, if anybody asks at all.
  void Set(std::vector<const FakeWorker*> workers) {
    absl::MutexLock lock(&mutex_);
    addresses_.clear();
    for (const FakeWorker* worker : workers) addresses_.push_back(worker->address());
    const int enough = answers_ + 2;
    const auto asked = [&] { return answers_ >= enough; };
    if (answers_ == 0) return;
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&asked), kLimit));
  }

 private:
  static constexpr absl::Duration kLimit = absl::Seconds(30);
  absl::Mutex mutex_;
  std::vector<std::string> addresses_;
  int answers_ = 0;
};

RouterOptions DirectoryOptions(Directory& directory) {
  RouterOptions options = OptionsFor({});
  options.targets = "dns:///workers:9000";
  options.resolve = directory.Function();
  options.resolve_interval = absl::Milliseconds(1);
  return options;
}

TEST(Replicas, ANewAddressIsConnectedAndUsed) {
  FakeWorker a({.automatic = false});
  FakeWorker b;
  Directory directory;
  directory.Set({&a});
  const auto router = MakeRouter(DirectoryOptions(directory));
  ASSERT_TRUE(WaitReady(*router, 1));
  const auto busy = router->Start(MakeSubmit(1, 5), 0, std::make_shared<RecordingSink>());
  directory.Set({&a, &b});
  ASSERT_TRUE(WaitReady(*router, 2));
  auto sink = std::make_shared<RecordingSink>();
  const auto sequence = router->Start(MakeSubmit(2, 5), 0, sink);
  EXPECT_TRUE(sink->WaitDone().ok());
  EXPECT_EQ(b.submits().size(), 1u);
}

TEST(Replicas, AVanishedAddressIsDroppedWhenItIsIdle) {
  FakeWorker a({.automatic = false});
  FakeWorker b;
  Directory directory;
  directory.Set({&a});
  const auto router = MakeRouter(DirectoryOptions(directory));
  auto sink = std::make_shared<RecordingSink>();
  const auto sequence = router->Start(MakeSubmit(1, 5), 0, sink);
  ASSERT_TRUE(a.WaitForSequences(1));
  directory.Set({&b});
  ASSERT_TRUE(Eventually([&] { return router->Summary().configured == 1; }));

  // Nothing new goes there …
  auto other = std::make_shared<RecordingSink>();
  const auto other_sequence = router->Start(MakeSubmit(2, 5), 0, other);
  EXPECT_TRUE(other->WaitDone().ok());
  EXPECT_EQ(a.submits().size(), 1u);
  EXPECT_EQ(a.streams(), 1);
  // … but what runs there finishes there.
  a.Step(5);
  EXPECT_TRUE(sink->WaitDone().ok());
  EXPECT_TRUE(a.WaitForStreams(0));
  EXPECT_EQ(b.submits().size(), 1u);
  EXPECT_TRUE(Eventually([&] { return router->Statistics().replicas.size() == 1; }));
}

TEST(Replicas, AVanishedAddressMayComeBack) {
  FakeWorker a({.automatic = false});
  FakeWorker b;
  Directory directory;
  directory.Set({&a});
  const auto router = MakeRouter(DirectoryOptions(directory));
  const auto busy = router->Start(MakeSubmit(1, 5), 0, std::make_shared<RecordingSink>());
  ASSERT_TRUE(a.WaitForSequences(1));
  directory.Set({&b});
  directory.Set({&a, &b});
  EXPECT_TRUE(WaitReady(*router, 2));
  EXPECT_EQ(a.connections(), 1);
}

TEST(Replicas, AnEmptyAnswerKeepsWhatIsConnected) {
  FakeWorker a;
  FakeWorker gone;
  gone.Kill();
  Directory directory;
  directory.Set({&a, &gone});
  const auto router = MakeRouter(DirectoryOptions(directory));
  ASSERT_TRUE(WaitReady(*router, 1));
  directory.Set({});
  EXPECT_TRUE(Eventually([&] { return router->Summary().configured == 1; }));
  auto sink = std::make_shared<RecordingSink>();
  const auto sequence = router->Start(MakeSubmit(1, 5), 0, sink);
  EXPECT_TRUE(sink->WaitDone().ok());
}

}  // namespace
}  // namespace marcoro
