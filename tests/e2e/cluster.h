// A whole server for a test: `marcoro serve` with its coordinator and workers, on ports of its own.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/e2e/client.h"
#include "tests/e2e/process.h"

namespace marcoro {

struct ClusterOptions {
  std::string model = "small";  // a folder of tests/data, or any absolute path
  int tp = 1;
  int replicas = 1;
  std::vector<std::string> flags = {};  // for serve
};

// Folder of a model of tests/data.
std::string ModelFolder(const std::string& model);

// The first of `count` neighbouring TCP ports that are free. Below the range that the kernel gives
// to outgoing connections, so that they stay free.
int FreePorts(int count);

// The number of one series, "name" or "name{label=\"value\",…}", of a Prometheus endpoint; nothing
// if it cannot be reached or does not have it.
std::optional<double> Metric(int port, const std::string& series);
// The whole page; empty if it cannot be reached.
std::string Scrape(int port);

// Reports of sanitizers in what programs have written.
bool HasSanitizerReport(const std::string& text);

class Cluster {
 public:
  // Returns when the server is ready, or has failed to become so.
  explicit Cluster(ClusterOptions options = {});
  // Stops the server if the test has not, and expects a clean end: exit code 0, no process left, no
  // report of a sanitizer.
  ~Cluster();

  bool ready() const { return client_ != nullptr; }
  // Everything the processes have written, for messages of failed tests.
  std::string log() const;

  const std::string& address() const { return address_; }
  Client& client() { return *client_; }
  Process& serve() { return *serve_; }

  int metrics_port() const { return metrics_port_; }
  int worker_metrics_port(int replica) const { return metrics_port_ + 1 + replica; }
  double CoordinatorMetric(const std::string& series) const;
  double WorkerMetric(int replica, const std::string& series) const;

  // Process ids as of now; 0 where there is none.
  pid_t CoordinatorPid() const;
  pid_t WorkerPid(int replica, int rank) const;
  // The replica that runs a sequence now; waits for one, -1 if none comes.
  int BusyReplica() const;
  // Waits until nothing runs and no KV block is held, on any replica.
  bool AwaitIdle() const;
  // Waits until all replicas are there.
  bool AwaitAllReplicas() const;

  // SIGTERM, and the exit code; nothing if it takes longer than that.
  std::optional<int> Stop(absl::Duration timeout = absl::Seconds(30));

 private:
  std::vector<Child> Workers() const;

  const ClusterOptions options_;
  int metrics_port_ = 0;
  std::string address_;
  std::unique_ptr<Process> serve_;
  std::unique_ptr<Client> client_;
  bool stopped_ = false;
};

}  // namespace marcoro
