// The whole API over a real socket, with a fake router behind it.
#pragma once

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/admission/admission.h"
#include "coordinator/api/metrics.h"
#include "coordinator/api/served_model.h"
#include "coordinator/api/server.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "marcoro/v1/inference.grpc.pb.h"
#include "marcoro/v1/model.grpc.pb.h"
#include "tests/coordinator/api/fake_router.h"

namespace marcoro {

// What a failed call told the client.
struct CallError {
  grpc::StatusCode code = grpc::StatusCode::OK;
  std::string message;
  std::string reason;               // of ErrorInfo
  std::vector<std::string> fields;  // of BadRequest
  std::optional<double> retry_seconds;
};
CallError ErrorOf(const grpc::Status& status);

class ApiTest : public testing::Test {
 protected:
  // Serves tests/data/`checkpoint`, or the folder if it is an absolute path.
  void Serve(const std::string& checkpoint = "tiny", const ApiServerOptions& options = {},
             const AdmissionOptions& admission = {});
  void SetUp() override { Serve(); }

  grpc::Status Generate(const v1::GenerateRequest& request, v1::GenerateResponse* response);
  // Reads to the end.
  grpc::Status Stream(const v1::GenerateRequest& request,
                      std::vector<v1::GenerateStreamResponse>* messages);
  // For requests that must be refused.
  CallError Refusal(const v1::GenerateRequest& request);

  // Ids of the text as it would be generated: no <s>, no space put in front.
  std::vector<uint32_t> Generated(const std::string& text) const;
  // The token of one byte.
  static uint32_t ByteToken(uint8_t byte) { return 3u + byte; }
  std::string target() const;

  std::unique_ptr<const ServedModel> model_;
  std::unique_ptr<Admission> admission_;
  std::unique_ptr<ApiMetrics> metrics_;
  std::unique_ptr<FakeRouter> router_;
  std::unique_ptr<ApiServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::InferenceService::Stub> inference_;
  std::unique_ptr<v1::ModelService::Stub> models_;
};

// A request with that prompt, and so on.
v1::GenerateRequest Prompt(const std::string& text);
std::string DataPath(const std::string& name);

}  // namespace marcoro
