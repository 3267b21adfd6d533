// The coordinator's binary: how it starts, refuses to start, and stops.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "grpc/health/v1/health.grpc.pb.h"
#include "marcoro/v1/inference.grpc.pb.h"
#include "tests/coordinator/routing/fake_worker.h"

extern char** environ;

namespace marcoro {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr int kExitStart = 1;
constexpr int kExitUsage = 2;

// A running coordinator; what it writes to either stream is collected.
class Process {
 public:
  explicit Process(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), std::string(MARCORO_BIN_DIR) + "/marcoro-coordinator");
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    int ends[2];
    EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDERR_FILENO);
    EXPECT_EQ(posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    output_ = ends[0];
  }
  ~Process() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      Wait();
    }
    close(output_);
  }

  // Reads until the output contains the text; false if it ends before.
  bool WaitFor(const std::string& wanted) {
    while (text_.find(wanted) == std::string::npos) {
      if (!ReadSome()) return false;
    }
    return true;
  }

  // The port that it serves on, once it says so; empty if it ends before.
  std::string WaitForPort() {
    const std::string before = ", port ";
    if (!WaitFor("serving ") || !WaitFor(", workers")) return "";
    const size_t begin = text_.find(before) + before.size();
    return text_.substr(begin, text_.find(',', begin) - begin);
  }

  void Signal(int signal) { kill(pid_, signal); }

  // The exit code, once it has ended; 128 + the signal that ended it.
  int Wait() {
    while (ReadSome()) {
    }
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

  const std::string& text() const { return text_; }

 private:
  bool ReadSome() {
    char buffer[4096];
    const ssize_t count = read(output_, buffer, sizeof(buffer));
    if (count > 0) text_.append(buffer, static_cast<size_t>(count));
    return count > 0;
  }

  pid_t pid_ = -1;
  int output_ = -1;
  std::string text_;
};

std::string Tiny() { return std::string("--model=") + MARCORO_TEST_DATA + "/tiny"; }

// Runs until it ends by itself.
struct Outcome {
  int code;
  std::string text;
};
Outcome RunToEnd(const std::vector<std::string>& arguments) {
  Process process(arguments);
  const int code = process.Wait();
  return {code, process.text()};
}

// One line, from the program, that says what is wrong.
void ExpectRefusal(const std::vector<std::string>& arguments, int code,
                   const testing::Matcher<std::string>& what) {
  const Outcome outcome = RunToEnd(arguments);
  EXPECT_EQ(outcome.code, code);
  EXPECT_THAT(outcome.text, AllOf(testing::StartsWith("marcoro-coordinator: "), what));
  EXPECT_EQ(std::count(outcome.text.begin(), outcome.text.end(), '\n'), 1) << outcome.text;
}

TEST(CoordinatorTest, RefusesFlagsThatMakeNoSense) {
  const std::string workers = "--workers=127.0.0.1:1";
  ExpectRefusal({}, kExitUsage, HasSubstr("--model"));
  ExpectRefusal({Tiny()}, kExitUsage, HasSubstr("--workers"));
  ExpectRefusal({Tiny(), workers, "--port=1"}, kExitUsage, HasSubstr("--port"));
  ExpectRefusal({Tiny(), workers, "--max-requests=many"}, kExitUsage, HasSubstr("--max-requests"));
  ExpectRefusal({Tiny(), workers, "--max-requests=0"}, kExitUsage, HasSubstr("--max-requests"));
  ExpectRefusal({Tiny(), workers, "--drain-timeout=-1s"}, kExitUsage, HasSubstr("--drain-timeout"));
  ExpectRefusal({Tiny(), workers, "--drain-timeout=soon"}, kExitUsage,
                HasSubstr("--drain-timeout"));
  ExpectRefusal({Tiny(), workers, "--policy=best"}, kExitUsage, HasSubstr("least_loaded"));
  ExpectRefusal({Tiny(), workers, "--chat-template=vicuna"}, kExitUsage, HasSubstr("chatml"));
  ExpectRefusal({Tiny(), workers, "--listen=50051"}, kExitUsage, HasSubstr("--listen"));
  ExpectRefusal({Tiny(), workers, "--metrics=nowhere:99999"}, kExitUsage, HasSubstr("--metrics"));
  ExpectRefusal({Tiny(), workers, "serve"}, kExitUsage, HasSubstr("serve"));
}

TEST(CoordinatorTest, RefusesToStartWithoutAModel) {
  ExpectRefusal({"--model=/nowhere/at/all", "--workers=127.0.0.1:1"}, kExitStart,
                HasSubstr("/nowhere/at/all"));
}

TEST(CoordinatorTest, RefusesWorkersThatAreNoAddresses) {
  ExpectRefusal({Tiny(), "--workers=somewhere", "--listen=127.0.0.1:0"}, kExitStart,
                HasSubstr("somewhere"));
}

TEST(CoordinatorTest, APortInUseIsOneLine) {
  Process first({Tiny(), "--workers=127.0.0.1:1", "--listen=127.0.0.1:0"});
  const std::string port = first.WaitForPort();
  ASSERT_NE(port, "") << first.text();
  ExpectRefusal(
      {Tiny(), "--workers=127.0.0.1:1", "--listen=127.0.0.1:" + port, "--log-level=error"},
      kExitStart, AllOf(HasSubstr(port), HasSubstr("--listen")));
  ExpectRefusal({Tiny(), "--workers=127.0.0.1:1", "--listen=127.0.0.1:0",
                 "--metrics=127.0.0.1:" + port, "--log-level=error"},
                kExitStart, AllOf(HasSubstr(port), HasSubstr("--metrics")));
}

TEST(CoordinatorTest, HelpListsEveryFlag) {
  const Outcome help = RunToEnd({"--help"});
  EXPECT_EQ(help.code, 0);
  EXPECT_THAT(help.text, AllOf(HasSubstr("--drain-timeout=DURATION"), HasSubstr("--policy=")));
  const Outcome table = RunToEnd({"--help-markdown"});
  EXPECT_EQ(table.code, 0);
  EXPECT_THAT(table.text, HasSubstr("| `--listen=HOST:PORT` | `127.0.0.1:50051` |"));
  EXPECT_THAT(RunToEnd({"--version"}).text, HasSubstr("marcoro-coordinator "));
}

class ServingTest : public testing::Test {
 protected:
  void Start(std::vector<std::string> more = {}) {
    more.insert(more.end(), {Tiny(), "--workers=" + worker_.address(), "--listen=127.0.0.1:0"});
    process_ = std::make_unique<Process>(more);
    const std::string port = process_->WaitForPort();
    ASSERT_NE(port, "") << process_->text();
    channel_ = grpc::CreateChannel("127.0.0.1:" + port, grpc::InsecureChannelCredentials());
    stub_ = v1::InferenceService::NewStub(channel_);
  }

  static FakeWorkerOptions SteppedByHand() {
    FakeWorkerOptions options;
    options.automatic = false;
    return options;
  }

  FakeWorker worker_{SteppedByHand()};
  std::unique_ptr<Process> process_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::InferenceService::Stub> stub_;
};

v1::GenerateRequest Request(uint32_t max_tokens) {
  v1::GenerateRequest request;
  request.set_prompt("hi");
  request.set_max_tokens(max_tokens);
  request.set_ignore_eos(true);
  request.set_seed(3);
  return request;
}

TEST_F(ServingTest, TheWholeWayFromAClientToAWorker) {
  Start();
  grpc::ClientContext context;
  auto reader = stub_->GenerateStream(&context, Request(5));
  ASSERT_TRUE(worker_.WaitForSubmits(1));
  worker_.Step(5);
  std::vector<uint32_t> ids;
  v1::GenerateStreamResponse message;
  while (reader->Read(&message)) {
    for (const v1::Choice& choice : message.choices()) {
      ids.insert(ids.end(), choice.token_ids().begin(), choice.token_ids().end());
    }
  }
  const grpc::Status status = reader->Finish();
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(ids, FakeWorker::Tokens(worker_.submits().at(0)));
  EXPECT_EQ(message.usage().cached_tokens(), FakeWorker::kCachedTokens);
}

TEST_F(ServingTest, AClientThatIsKilledFreesItsSequenceOnTheWorker) {
  Start();
  {
    grpc::ClientContext context;
    auto reader = stub_->GenerateStream(&context, Request(100));
    ASSERT_TRUE(worker_.WaitForSequences(1));
  }
  EXPECT_TRUE(worker_.WaitForCancels(1));
  EXPECT_TRUE(worker_.WaitForSequences(0));
}

TEST_F(ServingTest, SigtermLetsARunningStreamFinishAndExitsWithZero) {
  Start({"--drain-timeout=1m"});
  grpc::ClientContext context;
  auto reader = stub_->GenerateStream(&context, Request(2));
  ASSERT_TRUE(worker_.WaitForSubmits(1));
  process_->Signal(SIGTERM);
  process_->WaitFor("draining");
  worker_.Step(2);
  int tokens = 0;
  v1::GenerateStreamResponse message;
  while (reader->Read(&message)) tokens += message.choices(0).token_ids_size();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(tokens, 2);
  EXPECT_EQ(process_->Wait(), 0) << process_->text();
}

TEST_F(ServingTest, TheDrainTimeoutEndsWhatIsLeftAndExitsWithZero) {
  Start({"--drain-timeout=100ms"});
  grpc::ClientContext context;
  auto reader = stub_->GenerateStream(&context, Request(100));
  ASSERT_TRUE(worker_.WaitForSubmits(1));
  process_->Signal(SIGINT);
  v1::GenerateStreamResponse message;
  v1::FinishReason reason = v1::FINISH_REASON_UNSPECIFIED;
  while (reader->Read(&message)) reason = message.choices(0).finish_reason();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(reason, v1::FINISH_REASON_CANCELLED);
  EXPECT_EQ(process_->Wait(), 0) << process_->text();
}

TEST_F(ServingTest, PromptsAreNotLogged) {
  Start({"--log-level=trace"});
  grpc::ClientContext context;
  v1::GenerateRequest request = Request(1);
  request.set_prompt("the secret word is xyzzy");
  auto reader = stub_->GenerateStream(&context, request);
  ASSERT_TRUE(worker_.WaitForSubmits(1));
  worker_.Step();
  v1::GenerateStreamResponse message;
  while (reader->Read(&message)) {
  }
  process_->Signal(SIGTERM);
  EXPECT_EQ(process_->Wait(), 0);
  EXPECT_THAT(process_->text(), testing::Not(HasSubstr("xyzzy")));
}

}  // namespace
}  // namespace marcoro
