#include "coordinator/api/generate_call.h"

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/api/decode_request.h"
#include "coordinator/api/encode_response.h"
#include "coordinator/api/errors.h"
#include "coordinator/api/generation_call.h"

namespace marcoro {
namespace {

// How a unary method reads its request and writes its answer.
using ParseFunction = absl::StatusOr<ValidGenerate> (*)(const ApiContext&, const grpc::ByteBuffer&);
using AnswerFunction = grpc::ByteBuffer (*)(v1::GenerateStreamResponse);

absl::StatusOr<ValidGenerate> ParseGenerateBytes(const ApiContext& api,
                                                 const grpc::ByteBuffer& bytes) {
  v1::GenerateRequest request;
  if (absl::Status status = DecodeRequest(bytes, &request); !status.ok()) return status;
  return ParseGenerate(request, api.model, ContextLength(api));
}

absl::StatusOr<ValidGenerate> ParseScoreBytes(const ApiContext& api,
                                              const grpc::ByteBuffer& bytes) {
  v1::ScoreRequest request;
  if (absl::Status status = DecodeRequest(bytes, &request); !status.ok()) return status;
  return ParseScore(request, api.model, ContextLength(api));
}

grpc::ByteBuffer GenerateAnswer(v1::GenerateStreamResponse all) {
  v1::GenerateResponse response;
  response.set_id(std::move(*all.mutable_id()));
  response.set_model(std::move(*all.mutable_model()));
  response.mutable_choices()->Swap(all.mutable_choices());
  response.mutable_usage()->Swap(all.mutable_usage());
  response.mutable_timings()->Swap(all.mutable_timings());
  response.set_seed(all.seed());
  response.mutable_prompt_logprobs()->Swap(all.mutable_prompt_logprobs());
  return EncodeResponse(response);
}

grpc::ByteBuffer ScoreAnswer(v1::GenerateStreamResponse all) {
  v1::ScoreResponse response;
  response.set_id(std::move(*all.mutable_id()));
  response.set_model(std::move(*all.mutable_model()));
  response.mutable_tokens()->Swap(all.mutable_prompt_logprobs());
  response.mutable_usage()->Swap(all.mutable_usage());
  response.mutable_timings()->Swap(all.mutable_timings());
  return EncodeResponse(response);
}

// Answers once everything has been generated.
class UnaryCall final : public grpc::ServerUnaryReactor, public GenerationCall {
 public:
  UnaryCall(const ApiContext& api, ApiMethod method, grpc::CallbackServerContext* context,
            AnswerFunction encode, grpc::ByteBuffer* answer)
      : GenerationCall(api, method, context), encode_(encode), answer_(answer) {}

  void Run(absl::StatusOr<ValidGenerate> request) {
    Adopt();
    const absl::Status status =
        request.ok() ? Begin(*std::move(request)) : std::move(request).status();
    if (!status.ok()) {
      absl::MutexLock lock(&mutex_);
      FinishWith(status);
    }
  }

  void OnProgress() override {
    if (generation_->state() == Generation::State::kRunning) return;
    absl::MutexLock lock(&mutex_);
    if (finished_) return;
    v1::GenerateStreamResponse all;
    bool anything = false;
    switch (generation_->Take(&all, &anything)) {
      case Generation::State::kDone:
        *answer_ = encode_(std::move(all));
        WriteStarted();
        return FinishWith(absl::OkStatus());
      case Generation::State::kFailed:
        return FinishWith(generation_->failure());
      case Generation::State::kCancelled:
      case Generation::State::kRunning:
        return;
    }
  }

  void OnCancel() override {
    CancelGeneration();
    absl::MutexLock lock(&mutex_);
    FinishWith(absl::CancelledError("the call was cancelled"));
  }

  void OnDone() override { Leave(); }

 private:
  void FinishWith(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (finished_) return;
    finished_ = true;
    Finish(End(status));
  }

  const AnswerFunction encode_;
  grpc::ByteBuffer* const answer_;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
};

// Sends what has come as soon as the last message is on its way: one write in flight, later tokens
// gather for the next.
class StreamCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer>, public GenerationCall {
 public:
  StreamCall(const ApiContext& api, grpc::CallbackServerContext* context)
      : GenerationCall(api, ApiMethod::kGenerateStream, context) {}

  void Run(absl::StatusOr<ValidGenerate> request) {
    Adopt();
    const absl::Status status =
        request.ok() ? Begin(*std::move(request)) : std::move(request).status();
    if (!status.ok()) {
      absl::MutexLock lock(&mutex_);
      FinishWith(status);
    }
  }

  void OnProgress() override {
    absl::MutexLock lock(&mutex_);
    if (writing_) {
      CheckPending();
    } else {
      Send();
    }
  }

  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
    WriteEnded();
    if (!ok) GiveUp(absl::CancelledError("the client has gone"));
    if (!given_up_.ok()) return FinishWith(given_up_);
    Send();
  }

  void OnCancel() override {
    absl::MutexLock lock(&mutex_);
    GiveUp(absl::CancelledError("the call was cancelled"));
    if (!writing_) FinishWith(given_up_);  // otherwise when the write has ended
  }

  void OnDone() override { Leave(); }

 private:
  void Send() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (finished_) return;
    v1::GenerateStreamResponse news;
    bool anything = false;
    const Generation::State state = generation_->Take(&news, &anything);
    if (state == Generation::State::kFailed) return FinishWith(generation_->failure());
    if (!anything) return;
    message_ = EncodeResponse(news);
    WriteStarted();
    if (state == Generation::State::kDone) {
      finished_ = true;
      StartWriteAndFinish(&message_, grpc::WriteOptions(), End(absl::OkStatus()));
    } else {
      writing_ = true;
      StartWrite(&message_);
    }
  }

  // A client that does not read lets tokens pile up here.
  void CheckPending() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const uint64_t limit = api_.limits.max_pending_tokens;
    if (!given_up_.ok() || generation_->pending_tokens() <= limit) return;
    api_.metrics.CountSlowReader();
    GiveUp(WithReason(absl::ResourceExhaustedError(absl::StrCat("the client let more than ", limit,
                                                                " generated tokens wait unread")),
                      reason::kSlowReader));
  }

  // Frees the sequences; the call ends with the first status given, once no write is in flight.
  void GiveUp(absl::Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!given_up_.ok()) return;
    given_up_ = std::move(status);
    CancelGeneration();
  }

  void FinishWith(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (finished_) return;
    finished_ = true;
    Finish(End(status));
  }

  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status given_up_ ABSL_GUARDED_BY(mutex_);
  grpc::ByteBuffer message_ ABSL_GUARDED_BY(mutex_);
};

grpc::ServerUnaryReactor* StartUnary(const ApiContext& api, ApiMethod method,
                                     grpc::CallbackServerContext* context, ParseFunction parse,
                                     AnswerFunction encode, const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* answer) {
  auto call = std::make_shared<UnaryCall>(api, method, context, encode, answer);
  call->Run(parse(api, *request));
  return call.get();  // gRPC calls OnDone, which lets go of it, only after this
}

}  // namespace

grpc::ServerUnaryReactor* StartGenerate(const ApiContext& api, grpc::CallbackServerContext* context,
                                        const grpc::ByteBuffer* request, grpc::ByteBuffer* answer) {
  return StartUnary(api, ApiMethod::kGenerate, context, ParseGenerateBytes, GenerateAnswer, request,
                    answer);
}

grpc::ServerUnaryReactor* StartScore(const ApiContext& api, grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request, grpc::ByteBuffer* answer) {
  return StartUnary(api, ApiMethod::kScore, context, ParseScoreBytes, ScoreAnswer, request, answer);
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* StartGenerateStream(
    const ApiContext& api, grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  auto call = std::make_shared<StreamCall>(api, context);
  call->Run(ParseGenerateBytes(api, *request));
  return call.get();
}

}  // namespace marcoro
