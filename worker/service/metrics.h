// The worker's Prometheus metrics: what only the engine knows. What belongs to requests is the
// coordinator's.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "worker/engine/engine.h"

namespace prometheus {
class Collectable;
class Exposer;
class Histogram;
class Registry;
}  // namespace prometheus

namespace marcoro {

// Labels of the info families.
struct WorkerInfo {
  std::string model;  // folder's name
  std::string numerics_fingerprint;
  std::string backend;  // kernel family
  std::string quantization;
  int tensor_parallel = 1;
};

// All families exist, with value 0 where nothing has happened, from the first scrape on.
// Thread-safe.
class WorkerMetrics {
 public:
  explicit WorkerMetrics(const WorkerInfo& info);
  ~WorkerMetrics();

  // Where gauges and counters are read from at each scrape. Before it is set they are 0. nullptr
  // unsets it.
  void SetSnapshotSource(std::function<EngineSnapshot()> source);
  // For Engine's observer.
  void ObserveStep(const StepRecord& record);
  // For scrapes without a socket.
  std::string Scrape() const;

  // Serves /metrics until destroyed.
  class Server {
   public:
    // address is host:port. UNAVAILABLE (naming it) if it cannot be bound.
    static absl::StatusOr<std::unique_ptr<Server>> Start(const std::string& address,
                                                         const WorkerMetrics& metrics);
    ~Server();

   private:
    explicit Server(std::unique_ptr<prometheus::Exposer> exposer);
    std::unique_ptr<prometheus::Exposer> exposer_;
  };

 private:
  class SnapshotCollectable;

  std::shared_ptr<prometheus::Registry> registry_;
  std::shared_ptr<SnapshotCollectable> snapshot_;
  prometheus::Histogram* step_seconds_;
  prometheus::Histogram* step_sequences_;
};

}  // namespace marcoro
