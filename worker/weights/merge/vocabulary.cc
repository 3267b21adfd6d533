#include "worker/weights/merge/vocabulary.h"

#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "worker/model/json_nesting.h"
#include "worker/model/text_file.h"
#include "worker/weights/merge/sentencepiece_tokens.h"

namespace marcoro {
namespace {

using nlohmann::json;

constexpr size_t kMaxTokenizerBytes = 64u << 20;
constexpr int64_t kMaxTokens = 1 << 22;

// Tokens by id as files name them, with gaps.
using TokensById = std::map<int64_t, std::string>;

absl::Status Malformed(const std::string& file, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(file, ": ", what));
}

absl::StatusOr<json> ReadObject(const std::string& file) {
  absl::StatusOr<std::string> text = ReadSmallFile(file, kMaxTokenizerBytes);
  if (!text.ok()) return text.status();
  if (absl::Status status = CheckJsonNesting(*text, file); !status.ok()) return status;
  json root = json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!root.is_object()) return Malformed(file, "not a JSON object");
  return root;
}

absl::Status AddToken(const std::string& file, const json& id, const json& token,
                      TokensById& tokens) {
  if (!id.is_number_integer() || !token.is_string()) {
    return Malformed(file, "a token is no text or has no id");
  }
  const int64_t number = id.is_number_unsigned() && id.get<uint64_t>() > uint64_t{kMaxTokens}
                             ? kMaxTokens
                             : id.get<int64_t>();
  if (number < 0 || number >= kMaxTokens) {
    return Malformed(file, absl::StrCat("a token's id must be from 0 to ", kMaxTokens - 1));
  }
  tokens[number] = token.get<std::string>();
  return absl::OkStatus();
}

// {"token": id, …}
absl::Status AddByToken(const std::string& file, const json& object, TokensById& tokens) {
  if (!object.is_object()) return Malformed(file, "tokens and their ids must be an object");
  for (const auto& [token, id] : object.items()) {
    absl::Status status = AddToken(file, id, json(token), tokens);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

// tokenizer_config.json: {"32000": {"content": "<|im_end|>"}, …}
absl::Status AddDecoder(const std::string& file, const json& object, TokensById& tokens) {
  if (!object.is_object()) return Malformed(file, "added_tokens_decoder must be an object");
  for (const auto& [id, token] : object.items()) {
    int64_t number = 0;
    if (!absl::SimpleAtoi(id, &number) || !token.is_object()) {
      return Malformed(file, "added_tokens_decoder must map ids to objects");
    }
    absl::Status status = AddToken(file, json(number), token.value("content", json()), tokens);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

// What newer (tokenizer_config.json) or else older writers (added_tokens.json) add.
absl::Status AddAddedTokens(const std::string& directory, TokensById& tokens) {
  const std::string config_file = absl::StrCat(directory, "/tokenizer_config.json");
  absl::StatusOr<json> config = ReadObject(config_file);
  if (config.ok() && config->contains("added_tokens_decoder")) {
    return AddDecoder(config_file, (*config)["added_tokens_decoder"], tokens);
  }
  if (!config.ok() && !absl::IsNotFound(config.status())) return config.status();
  const std::string added_file = absl::StrCat(directory, "/added_tokens.json");
  absl::StatusOr<json> added = ReadObject(added_file);
  if (added.ok()) return AddByToken(added_file, *added, tokens);
  return absl::IsNotFound(added.status()) ? absl::OkStatus() : added.status();
}

// tokenizer.json: {"model": {"vocab": {"token": id, …}}, "added_tokens": [{"id", "content"}, …]}
absl::Status AddFastTokenizer(const std::string& file, const json& root, TokensById& tokens) {
  const json model = root.value("model", json::object());
  const json vocabulary = model.is_object() ? model.value("vocab", json()) : json();
  absl::Status status = AddByToken(file, vocabulary, tokens);
  if (!status.ok()) return status;
  const json added = root.value("added_tokens", json::array());
  if (!added.is_array()) return Malformed(file, "added_tokens must be a list");
  for (const json& token : added) {
    if (!token.is_object()) return Malformed(file, "an added token must be an object");
    status = AddToken(file, token.value("id", json()), token.value("content", json()), tokens);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<Vocabulary> FromIds(const TokensById& by_id, const std::string& origin) {
  std::vector<std::string> tokens(by_id.empty() ? 0 : by_id.rbegin()->first + 1);
  for (const auto& [id, token] : by_id) tokens[id] = token;
  return Vocabulary::FromTokens(std::move(tokens), origin);
}

}  // namespace

Vocabulary::Vocabulary(std::vector<std::string> tokens) : tokens_(std::move(tokens)) {
  for (size_t id = 0; id < tokens_.size(); ++id) ids_[tokens_[id]] = static_cast<int32_t>(id);
}

absl::StatusOr<Vocabulary> Vocabulary::FromTokens(std::vector<std::string> tokens,
                                                  const std::string& origin) {
  if (tokens.empty()) return Malformed(origin, "the tokenizer has no tokens");
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (tokens[id].empty()) {
      return Malformed(origin, absl::StrCat("the tokenizer has no token of id ", id));
    }
  }
  return Vocabulary(std::move(tokens));
}

int32_t Vocabulary::Find(std::string_view token) const {
  const auto found = ids_.find(std::string(token));
  return found == ids_.end() ? -1 : found->second;
}

Vocabulary Vocabulary::FirstTokens(size_t size) const {
  std::vector<std::string> tokens = tokens_;
  if (size < tokens.size()) tokens.resize(size);
  return Vocabulary(std::move(tokens));
}

absl::StatusOr<Vocabulary> LoadVocabulary(const std::string& directory) {
  const std::string model_file = absl::StrCat(directory, "/tokenizer.model");
  absl::StatusOr<std::string> model = ReadSmallFile(model_file, kMaxTokenizerBytes);
  if (!model.ok() && !absl::IsNotFound(model.status())) return model.status();
  TokensById by_id;
  if (model.ok()) {
    absl::StatusOr<std::vector<std::string>> pieces = ReadSentencePieceTokens(*model, model_file);
    if (!pieces.ok()) return pieces.status();
    for (size_t id = 0; id < pieces->size(); ++id) by_id[id] = std::move((*pieces)[id]);
    absl::Status status = AddAddedTokens(directory, by_id);
    if (!status.ok()) return status;
    return FromIds(by_id, directory);
  }
  const std::string fast_file = absl::StrCat(directory, "/tokenizer.json");
  absl::StatusOr<json> fast = ReadObject(fast_file);
  if (absl::IsNotFound(fast.status())) {
    return absl::NotFoundError(
        absl::StrCat(directory, ": has neither tokenizer.model nor tokenizer.json"));
  }
  if (!fast.ok()) return fast.status();
  absl::Status status = AddFastTokenizer(fast_file, *fast, by_id);
  if (!status.ok()) return status;
  return FromIds(by_id, directory);
}

}  // namespace marcoro
