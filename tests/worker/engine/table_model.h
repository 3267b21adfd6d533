// The smallest model there is, on a device: a table, of which the logits after a token are that
// token's row. Every rank of a group has its share of the columns.
#pragma once

#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "kernels/backend.h"
#include "worker/collective/communicator.h"
#include "worker/collective/key_store.h"
#include "worker/engine/step_executor.h"
#include "worker/group/step_broadcast.h"

namespace marcoro {

inline constexpr int32_t kTableVocabulary = 60;
inline constexpr int32_t kMostTableTokens = 64;  // of a step
// What comes after these is broken: a NaN, an infinity, nothing that could be chosen.
inline constexpr TokenId kAfterwardsNan = 57, kAfterwardsInfinite = 58, kAfterwardsNothing = 59;

// One rank's share. Ends the program if the backend fails.
class TableRank {
 public:
  // Both outlive it. A lone rank has the whole table.
  TableRank(Backend& backend, Communicator& communicator);

  // As Transformer::Forward.
  absl::StatusOr<Tensor> Forward(const StepPlan& plan);

 private:
  Buffer Allocate(int64_t rows, int64_t columns);
  absl::StatusOr<Tensor> Gather(const Tensor& share);

  Backend& backend_;
  Communicator& communicator_;
  const int32_t columns_;  // of the share
  const Buffer table_;
  const Buffer after_;   // each token of the step
  const Buffer share_;   // of the logits
  const Buffer shares_;  // of all ranks; rank 0's
  const Buffer logits_;  // rank 0's
};

// Rank 0 of a group whose peers are threads, each with a device of its own.
class TableExecutor final : public StepExecutor {
 public:
  // Peers leave, as if they crashed, when they have executed so many steps.
  TableExecutor(Backend& backend, int ranks, int steps_of_peers = -1);
  ~TableExecutor() override;

  absl::StatusOr<Tensor> Execute(const StepPlan& plan) override;
  // Time goes on without steps too.
  absl::Status Heartbeat() override;

  std::function<void(int)> during_step = [](int) {};
  int late_tokens = 0;  // in all plans

 private:
  struct Connections;
  void RunPeer(int rank, int ranks, int steps);

  LocalKeyStore keys_;
  std::vector<std::thread> peers_;
  std::unique_ptr<Connections> connections_;
  int steps_ = 0;
};

}  // namespace marcoro
