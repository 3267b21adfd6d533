#include "tests/coordinator/api/api_fixture.h"

#include <utility>

namespace marcoro {

CallError ErrorOf(const grpc::Status& status) {
  CallError error;
  error.code = status.error_code();
  error.message = status.error_message();
  google::rpc::Status details;
  if (!details.ParseFromString(status.error_details())) ADD_FAILURE() << "details do not parse";
  for (const google::protobuf::Any& any : details.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::BadRequest bad;
    google::rpc::RetryInfo retry;
    if (any.UnpackTo(&info)) {
      EXPECT_EQ(info.domain(), "marcoro");
      error.reason = info.reason();
    }
    if (any.UnpackTo(&bad)) {
      for (const auto& violation : bad.field_violations()) {
        error.fields.push_back(violation.field());
        EXPECT_FALSE(violation.description().empty());
      }
    }
    if (any.UnpackTo(&retry)) {
      error.retry_seconds =
          static_cast<double>(retry.retry_delay().seconds()) + retry.retry_delay().nanos() * 1e-9;
    }
  }
  return error;
}

std::string DataPath(const std::string& name) {
  return std::string(MARCORO_TEST_DATA) + "/" + name;
}

v1::GenerateRequest Prompt(const std::string& text) {
  v1::GenerateRequest request;
  request.set_prompt(text);
  return request;
}

void ApiTest::Serve(const std::string& checkpoint, const ApiServerOptions& options,
                    const AdmissionOptions& admission) {
  inference_.reset();
  models_.reset();
  channel_.reset();
  server_.reset();
  router_.reset();
  ServedModelOptions model_options;
  model_options.directory = checkpoint[0] == '/' ? checkpoint : DataPath(checkpoint);
  auto model = LoadServedModel(model_options);
  ASSERT_TRUE(model.ok()) << model.status();
  model_ = *std::move(model);
  metrics_ = std::make_unique<ApiMetrics>(ModelInfo{model_->name, model_->architecture, "1.2.3"});
  admission_ = std::make_unique<Admission>(admission);
  router_ = std::make_unique<FakeRouter>();
  auto server = ApiServer::Start({*model_, *router_, *admission_, *metrics_}, options);
  ASSERT_TRUE(server.ok()) << server.status();
  server_ = *std::move(server);
  channel_ = grpc::CreateChannel(target(), grpc::InsecureChannelCredentials());
  inference_ = v1::InferenceService::NewStub(channel_);
  models_ = v1::ModelService::NewStub(channel_);
}

std::string ApiTest::target() const { return "127.0.0.1:" + std::to_string(server_->port()); }

grpc::Status ApiTest::Generate(const v1::GenerateRequest& request, v1::GenerateResponse* response) {
  grpc::ClientContext context;
  return inference_->Generate(&context, request, response);
}

grpc::Status ApiTest::Stream(const v1::GenerateRequest& request,
                             std::vector<v1::GenerateStreamResponse>* messages) {
  grpc::ClientContext context;
  auto reader = inference_->GenerateStream(&context, request);
  v1::GenerateStreamResponse message;
  while (reader->Read(&message)) messages->push_back(message);
  return reader->Finish();
}

CallError ApiTest::Refusal(const v1::GenerateRequest& request) {
  v1::GenerateResponse response;
  return ErrorOf(Generate(request, &response));
}

std::vector<uint32_t> ApiTest::Generated(const std::string& text) const {
  const EncodeOptions options{.add_bos = false, .add_eos = false, .parse_special = false};
  const auto newline = model_->tokenizer->Encode("\n", options);
  const auto ids = model_->tokenizer->Encode("\n" + text, options);
  return {ids->begin() + static_cast<ptrdiff_t>(newline->size()), ids->end()};
}

}  // namespace marcoro
