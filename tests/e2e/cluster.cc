#include "tests/e2e/cluster.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <random>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "gtest/gtest.h"

namespace marcoro {
namespace {

constexpr absl::Duration kStart = absl::Seconds(60);
constexpr char kRunning[] = "marcoro_worker_sequences_running";
constexpr char kKvUsage[] = "marcoro_kv_cache_usage_ratio";

sockaddr_in Loopback(int port) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

bool IsFree(int port) {
  const int descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const absl::Cleanup closer = [descriptor] { close(descriptor); };
  const sockaddr_in address = Loopback(port);
  return bind(descriptor, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
}

// The value of --name=value among arguments; empty if it is not there.
std::string FlagOf(const std::vector<std::string>& arguments, const std::string& name) {
  for (absl::string_view argument : arguments) {
    if (absl::ConsumePrefix(&argument, absl::StrCat("--", name, "="))) return std::string(argument);
  }
  return "";
}

}  // namespace

std::string ModelFolder(const std::string& model) {
  return absl::StartsWith(model, "/") ? model : absl::StrCat(MARCORO_TEST_DATA, "/", model);
}

int FreePorts(int count) {
  static std::mt19937 random{std::random_device{}()};
  while (true) {
    const int first = std::uniform_int_distribution<int>(10'000, 31'000)(random);
    int free = 0;
    while (free < count && IsFree(first + free)) ++free;
    if (free == count) return first;
  }
}

std::string Scrape(int port) {
  const int descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const absl::Cleanup closer = [descriptor] { close(descriptor); };
  const timeval timeout = absl::ToTimeval(absl::Seconds(2) * TimeScale());
  setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
  const sockaddr_in address = Loopback(port);
  if (connect(descriptor, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0)
    return "";
  const std::string request = "GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n";
  if (send(descriptor, request.data(), request.size(), MSG_NOSIGNAL) < 0) return "";
  std::string answer;
  char buffer[8192];
  for (ssize_t count = 0; (count = recv(descriptor, buffer, sizeof(buffer), 0)) > 0;) {
    answer.append(buffer, static_cast<size_t>(count));
  }
  const size_t body = answer.find("\r\n\r\n");
  return body == std::string::npos ? "" : answer.substr(body + 4);
}

std::optional<double> Metric(int port, const std::string& series) {
  for (absl::string_view line : absl::StrSplit(Scrape(port), '\n')) {
    double value = 0;
    if (absl::ConsumePrefix(&line, absl::StrCat(series, " ")) && absl::SimpleAtod(line, &value))
      return value;
  }
  return std::nullopt;
}

bool HasSanitizerReport(const std::string& text) {
  for (const char* mark :
       {"AddressSanitizer", "LeakSanitizer", "ThreadSanitizer", "runtime error:"}) {
    if (absl::StrContains(text, mark)) return true;
  }
  return false;
}

Cluster::Cluster(ClusterOptions options) : options_(std::move(options)) {
  const int port = FreePorts(2 + options_.replicas);
  metrics_port_ = port + 1;
  address_ = absl::StrCat("127.0.0.1:", port);
  std::vector<std::string> arguments = {Program("marcoro"),
                                        "serve",
                                        absl::StrCat("--model=", ModelFolder(options_.model)),
                                        absl::StrCat("--tp=", options_.tp),
                                        absl::StrCat("--replicas=", options_.replicas),
                                        absl::StrCat("--listen=", address_),
                                        absl::StrCat("--metrics=127.0.0.1:", metrics_port_)};
  arguments.insert(arguments.end(), options_.flags.begin(), options_.flags.end());
  serve_ = std::make_unique<Process>(std::move(arguments));
  if (!serve_->AwaitOutput("ready:", kStart)) return;
  client_ = std::make_unique<Client>(address_);
}

Cluster::~Cluster() {
  if (!ready()) return;
  client_.reset();
  if (!stopped_) {
    EXPECT_EQ(Stop(), std::optional<int>(0)) << log();
  }
  EXPECT_TRUE(serve_->AwaitTreeGone(absl::Seconds(5))) << "processes are left\n" << log();
  EXPECT_FALSE(HasSanitizerReport(serve_->err())) << log();
}

std::string Cluster::log() const { return absl::StrCat(serve_->out(), serve_->err()); }

double Cluster::CoordinatorMetric(const std::string& series) const {
  return Metric(metrics_port_, series).value_or(-1);
}

double Cluster::WorkerMetric(int replica, const std::string& series) const {
  return Metric(worker_metrics_port(replica), series).value_or(-1);
}

pid_t Cluster::CoordinatorPid() const {
  for (const Child& child : ChildrenOf(serve_->pid())) {
    if (!child.arguments.empty() && absl::EndsWith(child.arguments[0], "marcoro-coordinator"))
      return child.pid;
  }
  return 0;
}

std::vector<Child> Cluster::Workers() const {
  std::vector<Child> workers;
  for (const Child& child : ChildrenOf(serve_->pid())) {
    if (!child.arguments.empty() && absl::EndsWith(child.arguments[0], "marcoro-worker"))
      workers.push_back(child);
  }
  return workers;
}

pid_t Cluster::WorkerPid(int replica, int rank) const {
  const std::vector<Child> workers = Workers();
  const std::string metrics = absl::StrCat("127.0.0.1:", worker_metrics_port(replica));
  const auto root = std::find_if(workers.begin(), workers.end(), [&](const Child& worker) {
    return FlagOf(worker.arguments, "metrics") == metrics;
  });
  if (root == workers.end()) return 0;
  if (rank == 0) return root->pid;
  const std::string address = FlagOf(root->arguments, "listen");
  for (const Child& worker : workers) {
    if (FlagOf(worker.arguments, "root") == address &&
        FlagOf(worker.arguments, "rank") == absl::StrCat(rank)) {
      return worker.pid;
    }
  }
  return 0;
}

int Cluster::BusyReplica() const {
  int busy = -1;
  Eventually([&] {
    for (int replica = 0; replica < options_.replicas; ++replica) {
      if (WorkerMetric(replica, kRunning) > 0) busy = replica;
    }
    return busy >= 0;
  });
  return busy;
}

bool Cluster::AwaitIdle() const {
  return Eventually([&] {
    for (int replica = 0; replica < options_.replicas; ++replica) {
      if (WorkerMetric(replica, kRunning) != 0 || WorkerMetric(replica, kKvUsage) != 0)
        return false;
    }
    return true;
  });
}

bool Cluster::AwaitAllReplicas() const {
  return Eventually(
      [&] { return CoordinatorMetric("marcoro_replicas_ready") == options_.replicas; }, kStart);
}

std::optional<int> Cluster::Stop(absl::Duration timeout) {
  stopped_ = true;
  serve_->Signal(SIGTERM);
  return serve_->AwaitExit(timeout);
}

}  // namespace marcoro
