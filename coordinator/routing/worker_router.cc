#include "coordinator/routing/worker_router.h"

#include <utility>

#include "coordinator/routing/policy.h"
#include "coordinator/routing/router_core.h"

namespace marcoro {
namespace {

class RoutedSequenceHandle final : public RoutedSequence {
 public:
  RoutedSequenceHandle(std::weak_ptr<RouterCore> core, std::shared_ptr<Sequence> sequence)
      : core_(std::move(core)), sequence_(std::move(sequence)) {}

  ~RoutedSequenceHandle() override {
    // First, so that no callback starts from here on, whether or not the router is still there.
    sequence_->cancelled.store(true);
    if (const std::shared_ptr<RouterCore> core = core_.lock()) core->Cancel(*sequence_);
  }

 private:
  const std::weak_ptr<RouterCore> core_;
  const std::shared_ptr<Sequence> sequence_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerRouter>> WorkerRouter::Create(RouterOptions options) {
  absl::StatusOr<std::vector<Target>> targets = ParseTargets(options.targets);
  if (!targets.ok()) return targets.status();
  absl::StatusOr<std::unique_ptr<Policy>> policy = MakePolicy(options.policy);
  if (!policy.ok()) return policy.status();

  ResolveFunction resolve = options.resolve ? options.resolve : ResolveHost;
  const absl::Duration interval = options.resolve_interval;
  auto core = std::make_shared<RouterCore>(std::move(options), *std::move(policy));
  auto registry = std::make_unique<Registry>(
      *std::move(targets), std::move(resolve), interval,
      [core](std::vector<std::string> addresses) { core->SetAddresses(std::move(addresses)); });
  return std::unique_ptr<WorkerRouter>(new WorkerRouter(std::move(core), std::move(registry)));
}

WorkerRouter::WorkerRouter(std::shared_ptr<RouterCore> core, std::unique_ptr<Registry> registry)
    : core_(std::move(core)), registry_(std::move(registry)) {
  core_->Begin();
  registry_->Start();
}

WorkerRouter::~WorkerRouter() { core_->Stop(); }

std::unique_ptr<RoutedSequence> WorkerRouter::Start(worker::v1::Submit submit, uint64_t affinity,
                                                    std::shared_ptr<SequenceSink> sink) {
  auto sequence = std::make_shared<Sequence>(std::move(submit), affinity, std::move(sink));
  core_->Start(sequence);
  return std::make_unique<RoutedSequenceHandle>(core_, std::move(sequence));
}

ReplicaSummary WorkerRouter::Summary() const { return core_->Summary(); }

RouterStatistics WorkerRouter::Statistics() const { return core_->Statistics(); }

}  // namespace marcoro
