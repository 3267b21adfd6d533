// The server's public API, as the commands use it. Errors are those of DescribeRpcError: their
// message is a whole line.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "deploy/flags/flag_table.h"
#include "marcoro/v1/inference.pb.h"
#include "marcoro/v1/model.pb.h"

namespace marcoro {

struct ClientOptions {
  std::string address = "127.0.0.1:50051";
  absl::Duration timeout = absl::Minutes(10);  // of each call
};

// --address and --timeout.
void AddClientFlags(FlagTable* table, ClientOptions* options);

class Client {
 public:
  explicit Client(ClientOptions options);
  ~Client();

  absl::StatusOr<v1::Model> GetModel();
  absl::StatusOr<v1::GenerateResponse> Generate(const v1::GenerateRequest& request);
  absl::StatusOr<v1::ScoreResponse> Score(const v1::ScoreRequest& request);
  absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request);

  // Calls on_message for each message as it comes. `cancelled`, if given, is asked at every message
  // and at least every 50 ms; CANCELLED soon after it says true.
  absl::Status GenerateStream(
      const v1::GenerateRequest& request,
      const std::function<void(const v1::GenerateStreamResponse&)>& on_message,
      const std::function<bool()>& cancelled = nullptr);

 private:
  struct Stubs;
  const ClientOptions options_;
  const std::unique_ptr<Stubs> stubs_;
};

}  // namespace marcoro
