#include "tests/worker/engine/table_model.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <utility>

#include "tests/kernels/cuda/device_backends.h"
#include "worker/collective/shared_memory.h"
#include "worker/collective/single.h"
#include "worker/model/staged_communicator.h"

namespace marcoro {
namespace {

template <typename T>
T ValueOrDie(absl::StatusOr<T> value) {
  if (value.ok()) return *std::move(value);
  std::fprintf(stderr, "%s\n", value.status().ToString().c_str());
  std::abort();
}

std::vector<float> TableOfLogits() {
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0, 2.5f);
  std::vector<float> table(kTableVocabulary * kTableVocabulary);
  for (float& logit : table) logit = normal(random);
  const auto row = [&](TokenId token) { return table.begin() + token * kTableVocabulary; };
  *(row(kAfterwardsNan) + 11) = std::numeric_limits<float>::quiet_NaN();
  *(row(kAfterwardsInfinite) + 11) = std::numeric_limits<float>::infinity();
  std::fill_n(row(kAfterwardsNothing), kTableVocabulary, -std::numeric_limits<float>::infinity());
  // Rare, so that most requests live on.
  for (TokenId token = 0; token < kTableVocabulary; ++token) {
    for (TokenId broken = kAfterwardsNan; broken <= kAfterwardsNothing; ++broken) {
      *(row(token) + broken) -= token < kAfterwardsNan ? 6 : 0;
    }
  }
  return table;
}

Tensor View(const Buffer& buffer, int64_t rows, int64_t columns) {
  return Tensor(buffer.data(), DType::kF32, rows, columns);
}

std::unique_ptr<Communicator> Connect(const char* prefix, int rank, int ranks, KeyStore& keys) {
  if (ranks == 1) return MakeSingleCommunicator();
  return ValueOrDie(
      MakeSharedMemoryCommunicator({.rank = rank, .size = ranks, .key_prefix = prefix}, keys));
}

}  // namespace

TableRank::TableRank(Backend& backend, Communicator& communicator)
    : backend_(backend),
      communicator_(communicator),
      columns_(kTableVocabulary / communicator.size()),
      table_(Allocate(kTableVocabulary, columns_)),
      after_(Allocate(kMostTableTokens, columns_)),
      share_(Allocate(kMostTableTokens, columns_)),
      shares_(Allocate(kMostTableTokens, kTableVocabulary)),
      logits_(Allocate(kMostTableTokens, kTableVocabulary)) {
  const std::vector<float> table = TableOfLogits();
  std::vector<float> share;
  for (int32_t token = 0; token < kTableVocabulary; ++token) {
    const auto begin = table.begin() + token * kTableVocabulary + communicator.rank() * columns_;
    share.insert(share.end(), begin, begin + columns_);
  }
  if (!backend.Upload(share.data(), table_.data(), table_.bytes()).ok()) std::abort();
}

Buffer TableRank::Allocate(int64_t rows, int64_t columns) {
  return ValueOrDie(backend_.Allocate(static_cast<size_t>(rows * columns) * sizeof(float)));
}

absl::StatusOr<Tensor> TableRank::Forward(const StepPlan& plan) {
  if (plan.tokens.empty()) return Tensor();
  const auto tokens = static_cast<int64_t>(plan.tokens.size());
  backend_.BeginStep({.ids = plan.tokens, .sequences = {}, .logit_rows = {}});
  if (communicator_.size() > 1) {
    absl::Status status =
        communicator_.BroadcastIds(absl::MakeSpan(backend_.step_ids(), plan.tokens.size()));
    if (!status.ok()) return status;
  }
  const Tensor after = View(after_, tokens, columns_);
  backend_.Embed(plan.tokens, View(table_, kTableVocabulary, columns_), after);
  int64_t end = 0;
  int64_t rows = 0;
  const Tensor share = View(share_, kMostTableTokens, columns_);
  for (const SequenceStep& step : plan.sequences) {
    end += step.token_count;
    if (step.logit_rows == 0) continue;
    backend_.CopyMatrix(after.Rows(end - step.logit_rows, step.logit_rows),
                        share.Rows(rows, step.logit_rows));
    rows += step.logit_rows;
  }
  return Gather(share.Rows(0, rows));
}

absl::StatusOr<Tensor> TableRank::Gather(const Tensor& share) {
  if (communicator_.size() == 1) return share;
  const auto elements = static_cast<size_t>(share.rows * columns_);
  const bool is_root = communicator_.rank() == 0;
  auto* shares = static_cast<float*>(shares_.data());
  absl::Status status = communicator_.GatherToRoot(
      absl::MakeConstSpan(share.Row<float>(0), elements),
      absl::MakeSpan(shares, is_root ? elements * static_cast<size_t>(communicator_.size()) : 0));
  if (!status.ok()) return status;
  if (!is_root) return Tensor();
  const Tensor logits = View(logits_, share.rows, kTableVocabulary);
  for (int rank = 0; rank < communicator_.size(); ++rank) {
    Tensor to(logits.Row<float>(0) + rank * columns_, DType::kF32, share.rows, columns_);
    to.stride = kTableVocabulary;
    backend_.CopyMatrix(
        Tensor(shares + static_cast<size_t>(rank) * elements, DType::kF32, share.rows, columns_),
        to);
  }
  return logits;
}

struct TableExecutor::Connections {
  Connections(Backend& backend, int rank, int ranks, KeyStore& keys)
      : control(Connect("control", rank, ranks, keys)),
        data(Connect("data", rank, ranks, keys)),
        staged(backend, *data),
        broadcast(control.get()),
        table(backend, staged) {}

  const std::unique_ptr<Communicator> control;
  const std::unique_ptr<Communicator> data;
  StagedCommunicator staged;
  StepBroadcast broadcast;
  TableRank table;
};

TableExecutor::TableExecutor(Backend& backend, int ranks, int steps_of_peers) {
  for (int rank = 1; rank < ranks; ++rank) {
    peers_.emplace_back([=, this] { RunPeer(rank, ranks, steps_of_peers); });
  }
  connections_ = std::make_unique<Connections>(backend, 0, ranks, keys_);
}

TableExecutor::~TableExecutor() {
  connections_->broadcast.SendShutdown().IgnoreError();  // to those that are there
  connections_.reset();
  for (std::thread& peer : peers_) peer.join();
}

void TableExecutor::RunPeer(int rank, int ranks, int steps) {
  const auto backend = ValueOrDie(MakeDeviceBackend(/*threads=*/1));
  Connections connections(*backend, rank, ranks, keys_);
  StepPlan plan;
  while (steps != 0) {
    const auto kind = connections.broadcast.Receive(&plan);
    if (!kind.ok() || *kind == StepBroadcast::Kind::kShutdown) return;
    if (*kind == StepBroadcast::Kind::kHeartbeat) continue;
    if (!connections.table.Forward(plan).ok()) return;
    --steps;
  }
}

absl::StatusOr<Tensor> TableExecutor::Execute(const StepPlan& plan) {
  during_step(++steps_);
  late_tokens += static_cast<int>(plan.late.size());
  if (absl::Status status = connections_->broadcast.SendStep(plan); !status.ok()) return status;
  return connections_->table.Forward(plan);
}

absl::Status TableExecutor::Heartbeat() {
  during_step(++steps_);
  return connections_->broadcast.SendHeartbeat();
}

}  // namespace marcoro
