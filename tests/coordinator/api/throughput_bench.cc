// How many tokens one core of coordinator passes on. Two processes, each kept to a core of its own:
// the API with a router that makes up tokens, and a client with many streams. Three runs: tokens
// as fast as they are taken; at a given rate, where the share of the core is what counts; and the
// same through routing, from a fake worker beside the client.
//
//   api_throughput_bench [--streams=256] [--tokens=2000] [--rate=50000]
#include <grpcpp/grpcpp.h>
#include <sched.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "coordinator/admission/admission.h"
#include "coordinator/api/metrics.h"
#include "coordinator/api/served_model.h"
#include "coordinator/api/server.h"
#include "coordinator/routing/router.h"
#include "coordinator/routing/worker_router.h"
#include "marcoro/v1/inference.grpc.pb.h"
#include "tests/coordinator/routing/fake_worker.h"

namespace marcoro {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double CpuSeconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

void KeepToCore(int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core % static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)), &set);
  sched_setaffinity(0, sizeof(set), &set);
}

// Once all streams are there, gives each of them a token in every step, as an engine does.
class SteppingRouter final : public Router {
 public:
  SteppingRouter(size_t streams, double tokens_per_second)
      : streams_(streams), tokens_per_second_(tokens_per_second), thread_([this] { Run(); }) {}
  ~SteppingRouter() override { thread_.join(); }

  std::unique_ptr<RoutedSequence> Start(worker::v1::Submit submit, uint64_t,
                                        std::shared_ptr<SequenceSink> sink) override {
    absl::MutexLock lock(&mutex_);
    sinks_.push_back(std::move(sink));
    tokens_ = submit.max_tokens();
    return std::make_unique<RoutedSequence>();
  }

  ReplicaSummary Summary() const override {
    ReplicaSummary summary;
    summary.configured = summary.ready = 1;
    summary.newest.set_context_length(1 << 20);
    return summary;
  }

 private:
  void Run() {
    const auto complete = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
      return sinks_.size() == streams_;
    };
    std::vector<std::shared_ptr<SequenceSink>> sinks;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(&complete));
      sinks = sinks_;
    }
    const Clock::time_point start = Clock::now();
    for (uint32_t step = 0; step < tokens_; ++step) {
      if (tokens_per_second_ > 0) {
        const double due =
            static_cast<double>(step) * static_cast<double>(streams_) / tokens_per_second_;
        absl::SleepFor(absl::Seconds(due - SecondsSince(start)));
      }
      for (size_t i = 0; i < sinks.size(); ++i) {
        worker::v1::SequenceUpdate update;
        update.add_token_ids(300 + (step + static_cast<uint32_t>(i)) % 700);
        if (step + 1 == tokens_) update.set_end(worker::v1::SEQUENCE_END_LENGTH);
        sinks[i]->OnUpdate(std::move(update));
      }
    }
    for (const auto& sink : sinks) sink->OnDone(absl::OkStatus());
  }

  const size_t streams_;
  const double tokens_per_second_;
  absl::Mutex mutex_;
  std::vector<std::shared_ptr<SequenceSink>> sinks_ ABSL_GUARDED_BY(mutex_);
  std::atomic<uint32_t> tokens_{0};
  std::thread thread_;
};

// One stream of the client, read by callbacks.
class StreamReader final : public grpc::ClientReadReactor<v1::GenerateStreamResponse> {
 public:
  StreamReader(v1::InferenceService::Stub* stub, const v1::GenerateRequest& request,
               std::atomic<int>* open)
      : request_(request), open_(open) {
    stub->async()->GenerateStream(&context_, &request_, this);
    StartRead(&message_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    ++messages;
    for (const v1::Choice& choice : message_.choices()) tokens += choice.token_ids_size();
    StartRead(&message_);
  }
  void OnDone(const grpc::Status& status) override {
    if (!status.ok()) std::fprintf(stderr, "a stream failed: %s\n", status.error_message().c_str());
    open_->fetch_sub(1);
    open_->notify_one();
  }

  uint64_t messages = 0;
  int64_t tokens = 0;

 private:
  const v1::GenerateRequest request_;
  std::atomic<int>* const open_;
  grpc::ClientContext context_;
  v1::GenerateStreamResponse message_;
};

struct Load {
  size_t streams = 256;
  uint32_t tokens = 2000;
  double rate = 50'000;
};

// Returns 0 if every token has come.
int RunClient(int port, const Load& load) {
  auto channel =
      grpc::CreateChannel("127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials());
  auto stub = v1::InferenceService::NewStub(channel);
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids(1);
  request.set_max_tokens(load.tokens);
  request.set_ignore_eos(true);
  std::atomic<int> open{static_cast<int>(load.streams)};
  std::vector<std::unique_ptr<StreamReader>> readers;
  const Clock::time_point start = Clock::now();
  for (size_t i = 0; i < load.streams; ++i) {
    readers.push_back(std::make_unique<StreamReader>(stub.get(), request, &open));
  }
  for (int left = open; left > 0; left = open) open.wait(left);
  const double seconds = SecondsSince(start);
  int64_t tokens = 0;
  uint64_t messages = 0;
  for (const auto& reader : readers) {
    tokens += reader->tokens;
    messages += reader->messages;
  }
  std::printf("  %zu streams, %lld tokens in %.2f s: %.0f tokens/s, %.0f messages/s\n",
              load.streams, static_cast<long long>(tokens), seconds,
              static_cast<double>(tokens) / seconds, static_cast<double>(messages) / seconds);
  std::fflush(stdout);
  return tokens == static_cast<int64_t>(load.streams) * load.tokens ? 0 : 1;
}

// A pipe that carries one value from one process to another.
template <typename Value>
class Handover {
 public:
  Handover() {
    if (pipe(ends_) != 0) std::abort();
  }
  void Send(const Value& value) {
    if (write(ends_[1], &value, sizeof(value)) != sizeof(value)) _exit(1);
  }
  Value Receive() {
    Value value;
    if (read(ends_[0], &value, sizeof(value)) != sizeof(value)) _exit(1);
    return value;
  }

 private:
  int ends_[2];
};

enum class Source { kRouter, kWorker };

struct Meeting {
  Handover<int> api_port;
  Handover<std::array<char, 64>> worker_address;
  Handover<char> begins;  // the client is about to open its streams
  Handover<char> ended;   // and has read all of them to their ends
};

void RunServer(const Load& load, Source source, double rate, Meeting* meeting) {
  KeepToCore(0);
  spdlog::set_level(spdlog::level::off);
  ServedModelOptions options;
  options.directory = std::string(MARCORO_TEST_DATA) + "/tiny";
  auto model = LoadServedModel(options);
  if (!model.ok()) _exit(1);
  ApiMetrics metrics({"tiny", "MistralForCausalLM", ""});
  Admission admission{AdmissionOptions()};
  std::unique_ptr<Router> router;
  if (source == Source::kRouter) {
    router = std::make_unique<SteppingRouter>(load.streams, rate);
  } else {
    RouterOptions router_options;
    router_options.targets = meeting->worker_address.Receive().data();
    auto worker_router = WorkerRouter::Create(router_options);
    if (!worker_router.ok()) _exit(1);
    router = *std::move(worker_router);
  }
  auto api = ApiServer::Start({**model, *router, admission, metrics}, ApiServerOptions());
  if (!api.ok()) _exit(1);
  meeting->api_port.Send((*api)->port());
  meeting->begins.Receive();
  const Clock::time_point start = Clock::now();
  const double cpu = CpuSeconds();
  meeting->ended.Receive();
  std::printf("  coordinator: %.0f %% of one core\n",
              100 * (CpuSeconds() - cpu) / SecondsSince(start));
  std::fflush(stdout);
  while ((*api)->requests_in_flight() > 0) absl::SleepFor(absl::Milliseconds(5));
  _exit(0);
}

void RunClientSide(const Load& load, Source source, double rate, Meeting* meeting) {
  KeepToCore(1);
  std::unique_ptr<FakeWorker> worker;
  if (source == Source::kWorker) {
    FakeWorkerOptions options;
    options.step_interval = absl::Seconds(static_cast<double>(load.streams) / rate);
    options.context_length = 1 << 20;
    worker = std::make_unique<FakeWorker>(options);
    std::array<char, 64> address{};
    worker->address().copy(address.data(), address.size() - 1);
    meeting->worker_address.Send(address);
  }
  const int port = meeting->api_port.Receive();
  meeting->begins.Send(0);
  const int code = RunClient(port, load);
  meeting->ended.Send(0);
  _exit(code);
}

// Both sides run in children, forked before gRPC is touched.
bool RunOnce(const char* title, const Load& load, Source source, double rate) {
  std::printf("%s\n", title);
  std::fflush(stdout);
  Meeting meeting;
  const pid_t client = fork();
  if (client == 0) RunClientSide(load, source, rate, &meeting);
  const pid_t server = fork();
  if (server == 0) RunServer(load, source, rate, &meeting);
  int client_status = 1;
  int server_status = 1;
  waitpid(client, &client_status, 0);
  if (client_status != 0) kill(server, SIGKILL);
  waitpid(server, &server_status, 0);
  return client_status == 0 && server_status == 0;
}

int Main(int argc, char** argv) {
  Load load;
  for (int i = 1; i < argc; ++i) {
    const std::pair<std::string, std::string> flag =
        absl::StrSplit(argv[i], absl::MaxSplits('=', 1));
    uint32_t value = 0;
    if (!absl::SimpleAtoi(flag.second, &value) || value == 0) return 2;
    if (flag.first == "--streams") load.streams = value;
    if (flag.first == "--tokens") load.tokens = value;
    if (flag.first == "--rate") load.rate = value;
  }
  bool ok = RunOnce("as fast as they are taken", load, Source::kRouter, 0);
  ok = RunOnce("at the given rate", load, Source::kRouter, load.rate) && ok;
  ok = RunOnce("at the given rate, from a worker over its stream", load, Source::kWorker,
               load.rate) &&
       ok;
  return ok ? 0 : 1;
}

}  // namespace
}  // namespace marcoro

int main(int argc, char** argv) { return marcoro::Main(argc, argv); }
