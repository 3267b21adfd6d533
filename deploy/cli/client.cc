#include "deploy/cli/client.h"

#include <grpcpp/grpcpp.h>

#include <utility>

#include "absl/time/clock.h"
#include "deploy/cli/rpc_error.h"
#include "marcoro/v1/inference.grpc.pb.h"
#include "marcoro/v1/model.grpc.pb.h"

namespace marcoro {
namespace {

constexpr int kMaxMessageBytes = 64 << 20;  // prompt_logprobs with alternatives are long
// How soon a cancellation is noticed.
constexpr absl::Duration kPoll = absl::Milliseconds(50);

absl::Status ToStatus(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return DescribeRpcError(status.error_code(), status.error_message(), status.error_details());
}

template <typename Response, typename Call>
absl::StatusOr<Response> Unary(absl::Duration timeout, const Call& call) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  Response response;
  const absl::Status status = ToStatus(call(&context, &response));
  if (!status.ok()) return status;
  return response;
}

// Waits for the one operation that is under way; cancels the call when asked to.
bool Await(grpc::CompletionQueue* queue, grpc::ClientContext* context,
           const std::function<bool()>& cancelled) {
  void* tag = nullptr;
  bool ok = false;
  bool pending = true;
  while (pending) {
    pending = queue->AsyncNext(&tag, &ok, absl::ToChronoTime(absl::Now() + kPoll)) ==
              grpc::CompletionQueue::TIMEOUT;
    if (cancelled && cancelled()) context->TryCancel();
  }
  return ok;
}

}  // namespace

struct Client::Stubs {
  std::unique_ptr<v1::InferenceService::Stub> inference;
  std::unique_ptr<v1::ModelService::Stub> models;
};

void AddClientFlags(FlagTable* table, ClientOptions* options) {
  table->Add("address", &options->address,
             {.value = "HOST:PORT", .help = "Where the server's gRPC API is."});
  table->Add("timeout", &options->timeout,
             {.value = "DURATION",
              .help = "Longest time of one request.",
              .minimum = 0.001,
              .maximum = 86400});
}

Client::Client(ClientOptions options)
    : options_(std::move(options)), stubs_(std::make_unique<Stubs>()) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  const auto channel =
      grpc::CreateCustomChannel(options_.address, grpc::InsecureChannelCredentials(), arguments);
  stubs_->inference = v1::InferenceService::NewStub(channel);
  stubs_->models = v1::ModelService::NewStub(channel);
}

Client::~Client() = default;

absl::StatusOr<v1::Model> Client::GetModel() {
  auto response = Unary<v1::GetModelResponse>(
      options_.timeout, [&](grpc::ClientContext* context, v1::GetModelResponse* out) {
        return stubs_->models->GetModel(context, v1::GetModelRequest(), out);
      });
  if (!response.ok()) return response.status();
  return std::move(*response->mutable_model());
}

absl::StatusOr<v1::GenerateResponse> Client::Generate(const v1::GenerateRequest& request) {
  return Unary<v1::GenerateResponse>(options_.timeout,
                                     [&](grpc::ClientContext* context, v1::GenerateResponse* out) {
                                       return stubs_->inference->Generate(context, request, out);
                                     });
}

absl::StatusOr<v1::ScoreResponse> Client::Score(const v1::ScoreRequest& request) {
  return Unary<v1::ScoreResponse>(options_.timeout,
                                  [&](grpc::ClientContext* context, v1::ScoreResponse* out) {
                                    return stubs_->inference->Score(context, request, out);
                                  });
}

absl::StatusOr<v1::TokenizeResponse> Client::Tokenize(const v1::TokenizeRequest& request) {
  return Unary<v1::TokenizeResponse>(options_.timeout,
                                     [&](grpc::ClientContext* context, v1::TokenizeResponse* out) {
                                       return stubs_->inference->Tokenize(context, request, out);
                                     });
}

absl::Status Client::GenerateStream(
    const v1::GenerateRequest& request,
    const std::function<void(const v1::GenerateStreamResponse&)>& on_message,
    const std::function<bool()>& cancelled) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + options_.timeout));
  grpc::CompletionQueue queue;
  const auto reader =
      stubs_->inference->AsyncGenerateStream(&context, request, &queue, /*tag=*/nullptr);
  bool more = Await(&queue, &context, cancelled);
  while (more) {
    v1::GenerateStreamResponse message;
    reader->Read(&message, nullptr);
    more = Await(&queue, &context, cancelled);
    if (more) on_message(message);
  }
  grpc::Status status;
  reader->Finish(&status, nullptr);
  Await(&queue, &context, cancelled);
  queue.Shutdown();
  return ToStatus(status);
}

}  // namespace marcoro
