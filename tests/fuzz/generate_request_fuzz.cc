// Input: a letter that says which request it is ("g"enerate, "s"core, "t"okenize, "d"etokenize),
// and the request's bytes as a client sends them.
#include <grpcpp/support/byte_buffer.h>

#include "coordinator/api/decode_request.h"
#include "coordinator/api/valid_request.h"
#include "tests/fuzz/input.h"

namespace marcoro {
namespace {

constexpr uint32_t kContext = 64;
constexpr uint32_t kVocabulary = 1024;

// The tokenizer of tests/data, and a template, so that every kind of input is one.
const ServedModel& Model() {
  static const ServedModel* const model = [] {
    auto* const made = new ServedModel;
    made->name = "fuzzed";
    made->vocabulary_size = kVocabulary;
    made->max_positions = kContext;
    auto tokenizer = Tokenizer::Load(MARCORO_TEST_DATA "/tiny");
    MARCORO_CHECK(tokenizer.ok());
    made->tokenizer = *std::move(tokenizer);
    made->chat_template = std::make_unique<ChatTemplate>(*ChatTemplate::Named("mistral"));
    return made;
  }();
  return *model;
}

template <typename Request>
std::optional<Request> Decoded(absl::string_view bytes) {
  const grpc::Slice slice(bytes.data(), bytes.size());
  Request request;
  if (!DecodeRequest(grpc::ByteBuffer(&slice, 1), &request).ok()) return std::nullopt;
  return request;
}

// What the worker is asked for is in range.
void CheckSubmit(const ValidGenerate& valid) {
  const worker::v1::Submit& submit = valid.submit;
  MARCORO_CHECK(submit.prompt_ids_size() > 0);
  MARCORO_CHECK(static_cast<uint32_t>(submit.prompt_ids_size()) + submit.max_tokens() <= kContext);
  MARCORO_CHECK(submit.min_tokens() <= submit.max_tokens());
  for (const uint32_t id : submit.prompt_ids()) MARCORO_CHECK(id < kVocabulary);
  const worker::v1::Sampling& sampling = submit.sampling();
  MARCORO_CHECK(sampling.temperature() >= 0 && sampling.top_k() <= kVocabulary);
  MARCORO_CHECK(sampling.top_p() > 0 && sampling.top_p() <= 1);
  MARCORO_CHECK(sampling.min_p() >= 0 && sampling.min_p() <= 1);
  MARCORO_CHECK(sampling.typical_p() > 0 && sampling.typical_p() <= 1);
  MARCORO_CHECK(sampling.repetition_penalty() > 0);
  for (const auto& [id, bias] : sampling.logit_bias()) {
    MARCORO_CHECK(id < kVocabulary && bias >= -100 && bias <= 100);
  }
}

void FuzzGenerate(absl::string_view bytes) {
  const auto request = Decoded<v1::GenerateRequest>(bytes);
  if (!request) return;
  const auto valid = ParseGenerate(*request, Model(), kContext);
  if (!valid.ok()) return;
  MARCORO_CHECK(valid->n >= 1 && valid->submit.max_tokens() >= 1);
  CheckSubmit(*valid);
}

void FuzzScore(absl::string_view bytes) {
  const auto request = Decoded<v1::ScoreRequest>(bytes);
  if (!request) return;
  const auto valid = ParseScore(*request, Model(), kContext);
  if (valid.ok()) MARCORO_CHECK(valid->submit.max_tokens() == 0);
}

void FuzzTokens(absl::string_view bytes) {
  if (const auto request = Decoded<v1::TokenizeRequest>(bytes)) {
    const auto valid = ParseTokenize(*request, Model());
    if (!valid.ok()) return;
    for (const uint32_t id : valid->ids) MARCORO_CHECK(id < kVocabulary);
  }
}

void FuzzDetokenize(absl::string_view bytes) {
  const auto request = Decoded<v1::DetokenizeRequest>(bytes);
  if (!request || !CheckDetokenize(*request, Model()).ok()) return;
  for (const uint32_t id : request->token_ids()) MARCORO_CHECK(id < kVocabulary);
}

}  // namespace

void FuzzOne(absl::string_view input) {
  if (input.empty()) return;
  const absl::string_view bytes = input.substr(1);
  switch (input[0]) {
    case 'g':
      return FuzzGenerate(bytes);
    case 's':
      return FuzzScore(bytes);
    case 't':
      return FuzzTokens(bytes);
    case 'd':
      return FuzzDetokenize(bytes);
    default:
      return;
  }
}

}  // namespace marcoro
