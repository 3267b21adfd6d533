#include "tests/e2e/client.h"

#include <grpcpp/generic/generic_stub.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "google/rpc/error_details.pb.h"
#include "tests/e2e/process.h"

namespace marcoro {
namespace {

void Append(const v1::GenerateStreamResponse& news, v1::GenerateResponse* all) {
  all->set_id(news.id());
  all->set_model(news.model());
  for (const v1::Choice& from : news.choices()) {
    while (all->choices_size() <= static_cast<int>(from.index())) {
      const uint32_t index = static_cast<uint32_t>(all->choices_size());
      all->add_choices()->set_index(index);
    }
    v1::Choice& to = *all->mutable_choices(static_cast<int>(from.index()));
    to.mutable_text()->append(from.text());
    to.mutable_token_ids()->MergeFrom(from.token_ids());
    to.mutable_logprobs()->MergeFrom(from.logprobs());
    if (from.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
      to.set_finish_reason(from.finish_reason());
    }
  }
  all->mutable_prompt_logprobs()->MergeFrom(news.prompt_logprobs());
  if (!news.has_usage()) return;
  *all->mutable_usage() = news.usage();
  *all->mutable_timings() = news.timings();
  all->set_seed(news.seed());
}

std::map<std::string, std::string> Trailers(const grpc::ClientContext& context) {
  std::map<std::string, std::string> trailers;
  for (const auto& [key, value] : context.GetServerTrailingMetadata()) {
    trailers[std::string(key.data(), key.size())] = std::string(value.data(), value.size());
  }
  return trailers;
}

std::string Text(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string text;
  if (!buffer.Dump(&slices).ok()) return text;
  for (const grpc::Slice& slice : slices) {
    text.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return text;
}

}  // namespace

void SetTimeout(grpc::ClientContext* context, absl::Duration timeout) {
  context->set_deadline(absl::ToChronoTime(absl::Now() + timeout * TimeScale()));
}

google::rpc::Status DetailsOf(const grpc::Status& status) {
  google::rpc::Status details;
  return details.ParseFromString(status.error_details()) ? details : google::rpc::Status();
}

std::string ReasonOf(const grpc::Status& status) {
  return DetailOf<google::rpc::ErrorInfo>(status).reason();
}

std::string FieldOf(const grpc::Status& status) {
  const auto detail = DetailOf<google::rpc::BadRequest>(status);
  return detail.field_violations().empty() ? "" : detail.field_violations(0).field();
}

Stream::Stream(v1::InferenceService::Stub& stub, const v1::GenerateRequest& request,
               absl::Duration timeout) {
  SetTimeout(&context_, timeout);
  reader_ = stub.GenerateStream(&context_, request);
}

bool Stream::Read() {
  v1::GenerateStreamResponse news;
  if (!reader_->Read(&news)) return false;
  ++messages_;
  for (const v1::Choice& choice : news.choices()) {
    tokens_ += static_cast<size_t>(choice.token_ids_size());
  }
  Append(news, &response_);
  return true;
}

bool Stream::ReadTokens(size_t count) {
  while (tokens_ < count) {
    if (!Read()) return false;
  }
  return true;
}

Reply Stream::Finish() {
  while (Read()) {
  }
  Reply reply;
  reply.status = reader_->Finish();
  reply.response = std::move(response_);
  reply.trailers = Trailers(context_);
  return reply;
}

Client::Client(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 200);
  arguments.SetMaxReceiveMessageSize(64 << 20);
  channel_ = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  inference_ = v1::InferenceService::NewStub(channel_);
  models_ = v1::ModelService::NewStub(channel_);
  health_ = grpc::health::v1::Health::NewStub(channel_);
}

Reply Client::Generate(const v1::GenerateRequest& request, absl::Duration timeout) {
  grpc::ClientContext context;
  SetTimeout(&context, timeout);
  Reply reply;
  reply.status = inference_->Generate(&context, request, &reply.response);
  reply.trailers = Trailers(context);
  return reply;
}

Reply Client::GenerateStream(const v1::GenerateRequest& request, absl::Duration timeout) {
  return Stream(*inference_, request, timeout).Finish();
}

grpc::Status Client::Score(const v1::ScoreRequest& request, v1::ScoreResponse* response) {
  grpc::ClientContext context;
  SetTimeout(&context, kCallTimeout);
  return inference_->Score(&context, request, response);
}

grpc::Status Client::Tokenize(const v1::TokenizeRequest& request, v1::TokenizeResponse* response) {
  grpc::ClientContext context;
  SetTimeout(&context, kCallTimeout);
  return inference_->Tokenize(&context, request, response);
}

grpc::Status Client::Detokenize(const v1::DetokenizeRequest& request,
                                v1::DetokenizeResponse* response) {
  grpc::ClientContext context;
  SetTimeout(&context, kCallTimeout);
  return inference_->Detokenize(&context, request, response);
}

v1::Model Client::Model() {
  grpc::ClientContext context;
  SetTimeout(&context, kCallTimeout);
  v1::GetModelResponse response;
  models_->GetModel(&context, v1::GetModelRequest(), &response);
  return response.model();
}

grpc::Status Client::Health(const std::string& service, bool* serving) {
  grpc::ClientContext context;
  SetTimeout(&context, kCallTimeout);
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  grpc::health::v1::HealthCheckResponse response;
  const grpc::Status status = health_->Check(&context, request, &response);
  *serving = status.ok() && response.status() == grpc::health::v1::HealthCheckResponse::SERVING;
  return status;
}

RawReply CallRaw(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                 const std::string& bytes) {
  grpc::ClientContext context;
  SetTimeout(&context, kCallTimeout);
  grpc::CompletionQueue queue;
  grpc::GenericStub stub(channel);
  const auto call = stub.PrepareCall(&context, method, &queue);
  const auto next = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  RawReply reply;
  call->StartCall(nullptr);
  next();
  const grpc::Slice slice(bytes);
  call->WriteLast(grpc::ByteBuffer(&slice, 1), grpc::WriteOptions(), nullptr);
  next();
  while (true) {
    grpc::ByteBuffer message;
    call->Read(&message, nullptr);
    if (!next()) break;
    reply.messages.push_back(Text(message));
  }
  call->Finish(&reply.status, nullptr);
  next();
  return reply;
}

v1::GenerateRequest Greedy(absl::string_view prompt, uint32_t max_tokens) {
  v1::GenerateRequest request;
  request.set_prompt(std::string(prompt));
  request.set_max_tokens(max_tokens);
  request.set_temperature(0);
  request.set_ignore_eos(true);
  request.set_seed(1);  // otherwise the server picks one, and the answer says which
  return request;
}

v1::GenerateRequest Sampled(absl::string_view prompt, uint32_t max_tokens, uint64_t seed) {
  v1::GenerateRequest request = Greedy(prompt, max_tokens);
  request.set_temperature(0.8f);
  request.set_seed(seed);
  return request;
}

std::string Bits(const v1::GenerateResponse& response) {
  v1::GenerateResponse bits = response;
  bits.clear_id();
  bits.clear_timings();
  bits.mutable_usage()->clear_cached_tokens();
  return bits.SerializeAsString();
}

}  // namespace marcoro
