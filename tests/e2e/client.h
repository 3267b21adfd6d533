// A client of the public API, as the end-to-end tests need it.
#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "google/rpc/status.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "marcoro/v1/inference.grpc.pb.h"
#include "marcoro/v1/model.grpc.pb.h"

namespace marcoro {

inline constexpr absl::Duration kCallTimeout = absl::Seconds(40);

void SetTimeout(grpc::ClientContext* context, absl::Duration timeout);

// The details of an error, as google.rpc has them.
google::rpc::Status DetailsOf(const grpc::Status& status);
// The first detail of that type; an empty message if there is none.
template <typename Detail>
Detail DetailOf(const grpc::Status& status) {
  Detail detail;
  const google::rpc::Status details = DetailsOf(status);
  for (const google::protobuf::Any& any : details.details()) {
    if (any.UnpackTo(&detail)) return detail;
  }
  return Detail();
}
// ErrorInfo's reason, and the first field that BadRequest names.
std::string ReasonOf(const grpc::Status& status);
std::string FieldOf(const grpc::Status& status);

struct Reply {
  grpc::Status status;
  v1::GenerateResponse response;
  std::map<std::string, std::string> trailers;
};

// One call of GenerateStream that puts its messages together to what Generate would answer.
class Stream {
 public:
  Stream(v1::InferenceService::Stub& stub, const v1::GenerateRequest& request,
         absl::Duration timeout = kCallTimeout);

  // Waits for the next message; false at the end.
  bool Read();
  // Reads until this many tokens have come; false if the stream ends before.
  bool ReadTokens(size_t count);
  // Over all choices.
  size_t tokens() const { return tokens_; }
  int messages() const { return messages_; }
  void Cancel() { context_.TryCancel(); }
  // Reads the rest.
  Reply Finish();

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::GenerateStreamResponse>> reader_;
  v1::GenerateResponse response_;
  size_t tokens_ = 0;
  int messages_ = 0;
};

class Client {
 public:
  // A connection of its own.
  explicit Client(const std::string& address);

  Reply Generate(const v1::GenerateRequest& request, absl::Duration timeout = kCallTimeout);
  Reply GenerateStream(const v1::GenerateRequest& request, absl::Duration timeout = kCallTimeout);
  grpc::Status Score(const v1::ScoreRequest& request, v1::ScoreResponse* response);
  grpc::Status Tokenize(const v1::TokenizeRequest& request, v1::TokenizeResponse* response);
  grpc::Status Detokenize(const v1::DetokenizeRequest& request, v1::DetokenizeResponse* response);
  v1::Model Model();
  // Empty if the health service does not know the name.
  grpc::Status Health(const std::string& service, bool* serving);

  v1::InferenceService::Stub& inference() { return *inference_; }
  v1::ModelService::Stub& models() { return *models_; }
  grpc::health::v1::Health::Stub& health() { return *health_; }
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

 private:
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::InferenceService::Stub> inference_;
  std::unique_ptr<v1::ModelService::Stub> models_;
  std::unique_ptr<grpc::health::v1::Health::Stub> health_;
};

// Sends bytes as the one request of a call, whatever they are, and collects the answers.
struct RawReply {
  grpc::Status status;
  std::vector<std::string> messages;
};
RawReply CallRaw(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                 const std::string& bytes);

// A greedy request that does not end by itself before max_tokens.
v1::GenerateRequest Greedy(absl::string_view prompt, uint32_t max_tokens);
// The same, drawn with that seed.
v1::GenerateRequest Sampled(absl::string_view prompt, uint32_t max_tokens, uint64_t seed);

// Everything of an answer that is promised not to change, as bytes: tokens, text, log-probabilities
// and reasons; not its id, its times and what was cached.
std::string Bits(const v1::GenerateResponse& response);

}  // namespace marcoro
