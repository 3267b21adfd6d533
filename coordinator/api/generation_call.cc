#include "coordinator/api/generation_call.h"

#include <grpc/support/log.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include <utility>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "coordinator/admission/admission.h"
#include "coordinator/admission/deadline.h"
#include "coordinator/api/errors.h"

namespace marcoro {
namespace {

std::string RandomId() {
  thread_local absl::BitGen random;
  return absl::StrCat(absl::Hex(absl::Uniform<uint64_t>(random), absl::kZeroPad16),
                      absl::Hex(absl::Uniform<uint64_t>(random), absl::kZeroPad16));
}

// Refused for want of room, time or replicas, rather than because of what the request says.
bool IsRejection(const absl::Status& status) {
  return absl::IsResourceExhausted(status) || absl::IsUnavailable(status) ||
         absl::IsDeadlineExceeded(status);
}

absl::Status WithAdmissionDetails(const AdmissionDecision& decision) {
  absl::string_view reason = reason::kInvalidField;
  if (decision.rejection == Rejection::kQueueFull) reason = reason::kTooManyRequests;
  if (decision.rejection == Rejection::kQuota) reason = reason::kQuotaExceeded;
  if (decision.rejection == Rejection::kDraining) reason = reason::kDraining;
  absl::Status status = WithReason(decision.status, reason);
  if (decision.retry_after == absl::ZeroDuration()) return status;
  return WithRetryDelay(std::move(status), decision.retry_after);
}

}  // namespace

uint32_t ContextLength(const ApiContext& api) {
  const uint32_t reported = api.router.Summary().newest.context_length();
  return reported > 0 ? reported : api.model.max_positions;
}

GenerationCall::GenerationCall(const ApiContext& api, ApiMethod method,
                               grpc::CallbackServerContext* context)
    : api_(api), method_(method), context_(context) {}

void GenerationCall::Adopt() { self_ = shared_from_this(); }

absl::Status GenerationCall::SetQueueTimeout(worker::v1::Submit* submit) {
  const std::chrono::system_clock::time_point deadline = [this] {
    absl::MutexLock lock(&mutex_);
    return context_->deadline();
  }();
  const absl::Time client_deadline = deadline == std::chrono::system_clock::time_point::max()
                                         ? absl::InfiniteFuture()
                                         : absl::FromChrono(deadline);
  const absl::StatusOr<absl::Duration> left =
      QueueTimeLeft(absl::Now(), client_deadline, api_.limits.queue_timeout);
  if (!left.ok()) return WithReason(left.status(), reason::kDeadline);
  submit->set_queue_timeout_microseconds(QueueTimeoutMicroseconds(*left));
  return absl::OkStatus();
}

absl::Status GenerationCall::Begin(ValidGenerate request) {
  if (absl::Status status = SetQueueTimeout(&request.submit); !status.ok()) return status;
  AdmissionDecision admission =
      api_.admission.Admit(kAnonymousKey, int64_t{request.n} * api_.model.concurrency_cost);
  if (!admission.status.ok()) return WithAdmissionDetails(admission);
  generation_ = std::make_shared<Generation>(RandomId(), std::move(request), api_.model,
                                             api_.metrics, arrival_, weak_from_this());
  // From here on a drain may end the generation, even before it starts.
  if (!api_.calls.Add(shared_from_this())) {
    return WithRetryDelay(
        WithReason(absl::UnavailableError("the server is draining"), reason::kDraining),
        absl::Seconds(1));
  }
  generation_->Start(api_.router, std::move(admission.ticket));
  return absl::OkStatus();
}

grpc::Status GenerationCall::End(const absl::Status& status) {
  GPR_ASSERT(context_ != nullptr);
  code_ = status.code();
  if (IsRejection(status)) api_.metrics.CountRejection(ReasonOf(status));
  return ToGrpcStatus(status, context_);
}

void GenerationCall::WriteStarted() { write_started_ = Clock::now(); }

void GenerationCall::WriteEnded() { write_started_.reset(); }

void GenerationCall::CheckWrite() {
  {
    absl::MutexLock lock(&mutex_);
    if (context_ == nullptr || !write_started_ ||
        absl::FromChrono(Clock::now() - *write_started_) < api_.limits.write_timeout) {
      return;
    }
    // A status would wait behind the message that is stuck; only a reset gets through.
    write_started_.reset();
    api_.metrics.CountSlowReader();
    context_->TryCancel();
  }
  CancelGeneration();
}

void GenerationCall::EndEarly() {
  if (generation_ != nullptr) generation_->EndEarly();
}

void GenerationCall::CancelGeneration() {
  if (generation_ != nullptr) generation_->Cancel();
}

void GenerationCall::Leave() {
  api_.calls.Remove(this);
  {
    absl::MutexLock lock(&mutex_);
    context_ = nullptr;
    api_.metrics.CountCall(method_, code_);
  }
  const std::shared_ptr<GenerationCall> last_owner = std::move(self_);
}

}  // namespace marcoro
