#include "coordinator/routing/worker_stream.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "gtest/gtest.h"
#include "tests/coordinator/routing/fake_worker.h"

namespace marcoro {
namespace {

using worker::v1::Submit;

class RecordingListener final : public WorkerStream::Listener {
 public:
  void OnMessage(worker::v1::ConnectResponse message) override {
    absl::MutexLock lock(&mutex_);
    EXPECT_FALSE(closed_.has_value());
    messages_.push_back(std::move(message));
  }
  void OnClosed(absl::Status reason, std::shared_ptr<void> remains) override {
    absl::MutexLock lock(&mutex_);
    EXPECT_FALSE(closed_.has_value());
    remains_ = std::move(remains);
    closed_ = std::move(reason);
  }

  bool WaitMessages(size_t count) {
    absl::MutexLock lock(&mutex_);
    const auto there = [&] { return messages_.size() >= count; };
    return mutex_.AwaitWithTimeout(absl::Condition(&there), absl::Seconds(30));
  }
  bool WaitClosed() {
    std::shared_ptr<void> remains;
    absl::MutexLock lock(&mutex_);
    const auto closed = [&] { return closed_.has_value(); };
    const bool done = mutex_.AwaitWithTimeout(absl::Condition(&closed), absl::Seconds(30));
    // To go on this thread, after the lock.
    remains = std::move(remains_);
    return done;
  }
  worker::v1::ConnectResponse message(size_t index) {
    absl::MutexLock lock(&mutex_);
    return messages_.at(index);
  }

 private:
  absl::Mutex mutex_;
  std::vector<worker::v1::ConnectResponse> messages_;
  std::optional<absl::Status> closed_;
  std::shared_ptr<void> remains_;
};

// A socket that takes connections and never says a word.
class MuteServer {
 public:
  MuteServer() : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::bind(socket_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(::listen(socket_, 8), 0);
    socklen_t size = sizeof(address);
    EXPECT_EQ(::getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
  }
  ~MuteServer() { ::close(socket_); }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

 private:
  const int socket_;
  int port_ = 0;
};

Submit MakeSubmit(uint64_t id) {
  Submit submit;
  submit.set_sequence_id(id);
  submit.add_prompt_ids(1);
  submit.set_max_tokens(4);
  return submit;
}

class WorkerStreamTest : public testing::Test {
 protected:
  void Open(const std::string& address, const WorkerStreamOptions& options = {}) {
    listener_ = std::make_shared<RecordingListener>();
    stream_ = MakeWorkerStream(address, options, listener_);
    stream_->Start();
  }
  void TearDown() override {
    stream_->Close();
    EXPECT_TRUE(listener_->WaitClosed());
  }

  std::shared_ptr<RecordingListener> listener_;
  std::shared_ptr<WorkerStream> stream_;
};

TEST_F(WorkerStreamTest, TheFirstMessageIsTheStatus) {
  FakeWorker worker;
  Open(worker.address());
  ASSERT_TRUE(listener_->WaitMessages(1));
  EXPECT_EQ(listener_->message(0).status().numerics_fingerprint(), "numerics-a");
}

TEST_F(WorkerStreamTest, SubmitsAndCancelsArriveInOrder) {
  FakeWorker worker({.automatic = false});
  Open(worker.address());
  ASSERT_TRUE(listener_->WaitMessages(1));
  for (uint64_t id = 1; id <= 100; ++id) {
    EXPECT_EQ(stream_->Submit(MakeSubmit(id)), WorkerStream::SubmitResult::kQueued);
  }
  for (uint64_t id = 1; id <= 50; ++id) stream_->Cancel(id);
  ASSERT_TRUE(worker.WaitForCancels(50));
  const std::vector<Submit> submits = worker.submits();
  ASSERT_EQ(submits.size(), 100u);
  for (uint64_t id = 1; id <= 100; ++id) EXPECT_EQ(submits[id - 1].sequence_id(), id);
  EXPECT_EQ(worker.sequences(), 50);
}

TEST_F(WorkerStreamTest, WhatWaitsForTheNetworkIsBoundedInNumber) {
  MuteServer server;
  Open(server.address(), {.max_queued_requests = 3});
  // One is being written, three wait.
  for (uint64_t id = 1; id <= 4; ++id) {
    EXPECT_EQ(stream_->Submit(MakeSubmit(id)), WorkerStream::SubmitResult::kQueued) << id;
  }
  EXPECT_EQ(stream_->Submit(MakeSubmit(5)), WorkerStream::SubmitResult::kFull);
}

TEST_F(WorkerStreamTest, WhatWaitsForTheNetworkIsBoundedInBytes) {
  MuteServer server;
  Submit large = MakeSubmit(1);
  for (int i = 0; i < 1000; ++i) large.add_prompt_ids(1);
  Open(server.address(), {.max_queued_bytes = 2500});
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(stream_->Submit(large), WorkerStream::SubmitResult::kQueued) << i;
  }
  EXPECT_EQ(stream_->Submit(large), WorkerStream::SubmitResult::kFull);
}

TEST_F(WorkerStreamTest, CloseDoesNotWaitForTheWorker) {
  MuteServer server;
  Open(server.address());
  EXPECT_EQ(stream_->Submit(MakeSubmit(1)), WorkerStream::SubmitResult::kQueued);
  stream_->Close();
  EXPECT_TRUE(listener_->WaitClosed());
  EXPECT_EQ(stream_->Submit(MakeSubmit(2)), WorkerStream::SubmitResult::kClosed);
}

TEST_F(WorkerStreamTest, TheEndOfTheWorkerClosesIt) {
  FakeWorker worker;
  Open(worker.address());
  ASSERT_TRUE(listener_->WaitMessages(1));
  worker.Kill();
  EXPECT_TRUE(listener_->WaitClosed());
}

TEST_F(WorkerStreamTest, AnAddressWhereNobodyListensClosesIt) {
  FakeWorker worker;
  worker.Kill();
  Open(worker.address());
  EXPECT_TRUE(listener_->WaitClosed());
}

TEST_F(WorkerStreamTest, AMessageThatIsTooLargeClosesIt) {
  FakeWorker worker({.fingerprint = std::string(4096, 'x')});
  Open(worker.address(), {.max_message_bytes = 1024});
  EXPECT_TRUE(listener_->WaitClosed());
}

}  // namespace
}  // namespace marcoro
