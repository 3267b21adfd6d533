#include "worker/group/step_broadcast.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "marcoro/worker/v1/group.pb.h"

namespace marcoro {
namespace {

using worker::v1::StepMessage;

void Fill(const StepPlan& plan, StepMessage* message) {
  for (const SequenceStep& sequence : plan.sequences) {
    worker::v1::SequenceStep* step = message->add_sequences();
    step->set_position(sequence.position);
    step->set_token_count(sequence.token_count);
    step->set_block_count(sequence.block_count);
    step->set_logit_rows(sequence.logit_rows);
  }
  message->mutable_tokens()->Add(plan.tokens.begin(), plan.tokens.end());
  message->mutable_blocks()->Add(plan.blocks.begin(), plan.blocks.end());
  message->mutable_blocks_to_zero()->Add(plan.blocks_to_zero.begin(), plan.blocks_to_zero.end());
}

absl::Status Contradiction(absl::string_view what) {
  return absl::InternalError(absl::StrCat("rank 0 sent a step that contradicts itself: ", what));
}

template <typename Ids>
bool NoneIsNegative(const Ids& ids) {
  return std::all_of(ids.begin(), ids.end(), [](int32_t id) { return id >= 0; });
}

// Peers index memory with these numbers.
absl::Status Validate(const StepMessage& message) {
  int64_t tokens = 0;
  int64_t blocks = 0;
  for (const worker::v1::SequenceStep& sequence : message.sequences()) {
    if (sequence.position() < 0) return Contradiction("a position below 0");
    if (sequence.token_count() < 1) return Contradiction("a sequence without tokens");
    if (sequence.block_count() < 1) return Contradiction("a sequence without blocks");
    if (sequence.logit_rows() < 0 || sequence.logit_rows() > sequence.token_count()) {
      return Contradiction("logits of more tokens than there are");
    }
    tokens += sequence.token_count();
    blocks += sequence.block_count();
  }
  if (tokens != message.tokens_size()) {
    return Contradiction(
        absl::StrCat(tokens, " tokens announced, ", message.tokens_size(), " sent"));
  }
  if (blocks != message.blocks_size()) {
    return Contradiction(
        absl::StrCat(blocks, " blocks announced, ", message.blocks_size(), " sent"));
  }
  if (!NoneIsNegative(message.tokens())) return Contradiction("a token id below 0");
  if (!NoneIsNegative(message.blocks()) || !NoneIsNegative(message.blocks_to_zero())) {
    return Contradiction("a block id below 0");
  }
  return absl::OkStatus();
}

void Read(const StepMessage& message, StepPlan* plan) {
  plan->sequences.reserve(static_cast<size_t>(message.sequences_size()));
  for (const worker::v1::SequenceStep& sequence : message.sequences()) {
    SequenceStep step;
    step.position = sequence.position();
    step.token_count = sequence.token_count();
    step.block_count = sequence.block_count();
    step.logit_rows = sequence.logit_rows();
    plan->sequences.push_back(step);
  }
  plan->tokens.assign(message.tokens().begin(), message.tokens().end());
  plan->blocks.assign(message.blocks().begin(), message.blocks().end());
  plan->blocks_to_zero.assign(message.blocks_to_zero().begin(), message.blocks_to_zero().end());
}

}  // namespace

StepBroadcast::StepBroadcast(Communicator* control)
    : control_(control), message_(std::make_unique<StepMessage>()) {}
StepBroadcast::~StepBroadcast() = default;

absl::Status StepBroadcast::SendStep(const StepPlan& plan) {
  if (control_->size() == 1) return absl::OkStatus();
  message_->Clear();
  message_->set_kind(StepMessage::KIND_STEP);
  Fill(plan, message_.get());
  return Send();
}

absl::Status StepBroadcast::SendHeartbeat() {
  if (control_->size() == 1) return absl::OkStatus();
  message_->Clear();
  message_->set_kind(StepMessage::KIND_HEARTBEAT);
  if (absl::Status status = Send(); !status.ok()) return status;
  return ExchangeHeartbeatAnswers();
}

absl::Status StepBroadcast::SendShutdown() {
  if (control_->size() == 1) return absl::OkStatus();
  message_->Clear();
  message_->set_kind(StepMessage::KIND_SHUTDOWN);
  return Send();
}

absl::Status StepBroadcast::Send() {
  MARCORO_CHECK(control_->rank() == 0);
  message_->set_step(++step_);
  bytes_.clear();
  MARCORO_CHECK(message_->AppendToString(&bytes_));
  return control_->BroadcastFromRoot(&bytes_);
}

// The number of the heartbeat is the answer: a peer that is elsewhere in the sequence of messages
// is found out.
absl::Status StepBroadcast::ExchangeHeartbeatAnswers() {
  const float number = static_cast<float>(step_ % (1 << 24));  // exact in a float
  std::vector<float> answers(control_->rank() == 0 ? static_cast<size_t>(control_->size()) : 0);
  absl::Status status =
      control_->GatherToRoot(absl::MakeConstSpan(&number, 1), absl::MakeSpan(answers));
  if (!status.ok()) return status;
  for (const float answer : answers) {
    if (answer != number) return absl::InternalError("a peer answered another heartbeat");
  }
  return absl::OkStatus();
}

absl::StatusOr<StepBroadcast::Kind> StepBroadcast::Receive(StepPlan* plan) {
  MARCORO_CHECK(control_->rank() != 0);
  plan->Clear();
  if (absl::Status status = control_->BroadcastFromRoot(&bytes_); !status.ok()) return status;
  if (!message_->ParseFromString(bytes_)) {
    return absl::InternalError("rank 0 sent a step that cannot be read");
  }
  if (message_->step() != ++step_) {
    return absl::InternalError(
        absl::StrCat("message ", message_->step(), " of rank 0 came instead of ", step_));
  }
  switch (message_->kind()) {
    case StepMessage::KIND_STEP:
      if (absl::Status status = Validate(*message_); !status.ok()) return status;
      Read(*message_, plan);
      return Kind::kStep;
    case StepMessage::KIND_HEARTBEAT:
      if (absl::Status status = ExchangeHeartbeatAnswers(); !status.ok()) return status;
      return Kind::kHeartbeat;
    case StepMessage::KIND_SHUTDOWN:
      return Kind::kShutdown;
    default:
      return absl::InternalError(
          absl::StrCat("rank 0 sent a message of unknown kind ", message_->kind()));
  }
}

}  // namespace marcoro
