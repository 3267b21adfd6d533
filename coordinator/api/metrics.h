// The coordinator's Prometheus metrics. Every family and label value exists from the first scrape
// on; no label ever holds anything that belongs to a single request.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "marcoro/v1/inference.pb.h"

namespace prometheus {
class Collectable;
class Counter;
class Exposer;
class Gauge;
class Histogram;
class Registry;
}  // namespace prometheus

namespace marcoro {

// Methods of the public API, as the label `method`.
enum class ApiMethod {
  kGenerate,
  kGenerateStream,
  kScore,
  kTokenize,
  kDetokenize,
  kListModels,
  kGetModel
};
inline constexpr int kApiMethodCount = 7;

// Numbers that others keep, read at each scrape.
struct MetricsSnapshot {
  int replicas_configured = 0;
  int replicas_ready = 0;
  uint64_t sequences_running = 0;
  uint64_t sequences_waiting = 0;
  uint64_t replayed_sequences = 0;
  uint64_t requests_in_flight = 0;
  // Whether new requests are refused because the server is draining.
  bool draining = false;
};

struct ModelInfo {
  std::string name;
  std::string architecture;
  std::string version;  // of this binary
};

class ApiMetrics {
 public:
  explicit ApiMetrics(const ModelInfo& model);
  ~ApiMetrics();

  // Where the numbers of MetricsSnapshot come from. Set before the first scrape; called from the
  // exposer's thread.
  void SetSnapshotSource(std::function<MetricsSnapshot()> source);

  void CountCall(ApiMethod method, absl::StatusCode code);
  // `reason` is an ErrorInfo.reason; one that no refusal uses counts as OTHER.
  void CountRejection(absl::string_view reason);
  void CountFinish(v1::FinishReason reason);
  void CountPromptTokens(uint64_t prompt, uint64_t cached);
  void CountGeneratedTokens(uint64_t tokens);
  void CountSlowReader();

  void ObserveFirstToken(absl::Duration since_arrival);
  // `tokens` tokens came `gap` after the one before them.
  void ObserveInterToken(absl::Duration gap, uint64_t tokens);
  void ObserveRequest(absl::Duration queue, absl::Duration prefill, absl::Duration decode,
                      absl::Duration total);

  // For the exposer, and for tests.
  std::shared_ptr<prometheus::Registry> registry() const { return registry_; }
  std::shared_ptr<prometheus::Collectable> snapshot_collectable() const { return snapshot_; }
  // What a scrape returns.
  std::string Scrape() const;

 private:
  class SnapshotCollectable;
  struct Families;

  std::shared_ptr<prometheus::Registry> registry_;
  std::shared_ptr<prometheus::Collectable> snapshot_;
  std::unique_ptr<Families> families_;
};

// Serves /metrics over HTTP until destroyed.
class MetricsServer {
 public:
  // `address` is host:port. UNAVAILABLE if it cannot be bound.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(const std::string& address,
                                                              const ApiMetrics& metrics);
  ~MetricsServer();
  // The port in use; of interest where the address said port 0.
  int port() const;

 private:
  explicit MetricsServer(std::unique_ptr<prometheus::Exposer> exposer);
  std::unique_ptr<prometheus::Exposer> exposer_;
};

}  // namespace marcoro
