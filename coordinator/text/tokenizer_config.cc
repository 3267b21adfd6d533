#include "coordinator/text/tokenizer_config.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "coordinator/text/vocabulary.h"

namespace marcoro {
namespace {

using nlohmann::json;

constexpr size_t kMaxFileBytes = 64 << 20;
constexpr const char* kNamedTokens[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                        "pad_token", "cls_token", "mask_token"};

absl::Status Malformed(const std::string& file, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(file, ": ", what));
}

absl::StatusOr<json> ParseObject(absl::string_view text, const std::string& file) {
  json parsed = json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (parsed.is_discarded()) return Malformed(file, "not valid JSON");
  if (!parsed.is_object()) return Malformed(file, "not a JSON object");
  return parsed;
}

// The member, or null where the object has none.
const json* Find(const json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

absl::Status ReadFlag(const json& object, const char* key, const std::string& file, bool* flag) {
  const json* value = Find(object, key);
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_boolean()) return Malformed(file, absl::StrCat(key, " is neither true nor false"));
  *flag = value->get<bool>();
  return absl::OkStatus();
}

// A token as a string, or as an object with content and flags.
absl::StatusOr<AddedToken> ReadToken(const json& value, absl::string_view key,
                                     const std::string& file) {
  AddedToken token;
  const json* content = value.is_object() ? Find(value, "content") : &value;
  if (content == nullptr || !content->is_string()) {
    return Malformed(file, absl::StrCat(key, " is no token: neither a string nor an object with ",
                                        "a string named content"));
  }
  token.content = content->get<std::string>();
  if (token.content.size() > TokenizerConfig::kMaxAddedTokenBytes) {
    return Malformed(file, absl::StrCat(key, " is longer than ",
                                        TokenizerConfig::kMaxAddedTokenBytes, " bytes"));
  }
  if (!value.is_object()) return token;
  for (const auto& [name, flag] : {std::pair("lstrip", &token.lstrip),
                                   {"rstrip", &token.rstrip},
                                   {"single_word", &token.single_word},
                                   {"special", &token.special}}) {
    if (absl::Status status = ReadFlag(value, name, file, flag); !status.ok()) return status;
  }
  return token;
}

// The special tokens that have a name; a later file's replace an earlier one's.
struct NamedTokens {
  std::map<std::string, AddedToken> by_name = {{"bos_token", {.content = "<s>"}},
                                               {"eos_token", {.content = "</s>"}},
                                               {"unk_token", {.content = "<unk>"}}};
  std::vector<AddedToken> additional;
};

// bos_token and the like, and additional_special_tokens, out of tokenizer_config.json or
// special_tokens_map.json.
absl::Status ReadNamedTokens(const json& object, const std::string& file, NamedTokens* named) {
  for (const char* key : kNamedTokens) {
    const auto value = object.find(key);
    if (value == object.end()) continue;
    if (value->is_null()) {
      named->by_name.erase(key);
      continue;
    }
    absl::StatusOr<AddedToken> token = ReadToken(*value, key, file);
    if (!token.ok()) return token.status();
    named->by_name[key] = *std::move(token);
  }
  const json* additional = Find(object, "additional_special_tokens");
  if (additional == nullptr) return absl::OkStatus();
  if (!additional->is_array() || additional->size() > TokenizerConfig::kMaxAddedTokens) {
    return Malformed(file, "additional_special_tokens is not a list, or too long");
  }
  for (const json& value : *additional) {
    absl::StatusOr<AddedToken> token = ReadToken(value, "additional_special_tokens", file);
    if (!token.ok()) return token.status();
    named->additional.push_back(*std::move(token));
  }
  return absl::OkStatus();
}

void StoreNamedTokens(const NamedTokens& named, TokenizerConfig* config) {
  const auto content_of = [&](const char* name) {
    const auto found = named.by_name.find(name);
    return found == named.by_name.end() ? std::nullopt : std::optional(found->second.content);
  };
  config->bos_token = content_of("bos_token");
  config->eos_token = content_of("eos_token");
  config->unk_token = content_of("unk_token").value_or("<unk>");
  config->named_tokens.clear();
  absl::flat_hash_set<std::string> seen;
  const auto add = [&](AddedToken token) {
    token.special = true;
    if (!token.content.empty() && seen.insert(token.content).second) {
      config->named_tokens.push_back(std::move(token));
    }
  };
  for (const char* key : kNamedTokens) {
    const auto found = named.by_name.find(key);
    if (found != named.by_name.end()) add(found->second);
  }
  for (const AddedToken& token : named.additional) add(token);
}

bool IsNamed(const NamedTokens& named, absl::string_view content) {
  const auto same = [&](const AddedToken& token) { return token.content == content; };
  return std::any_of(named.by_name.begin(), named.by_name.end(),
                     [&](const auto& entry) { return same(entry.second); }) ||
         std::any_of(named.additional.begin(), named.additional.end(), same);
}

absl::Status AddById(int64_t id, AddedToken token, const std::string& file,
                     TokenizerConfig* config) {
  if (id < 0 || id >= Vocabulary::kMaxSize) {
    return Malformed(file, absl::StrCat("the id ", id, " of an added token is not in 0 … ",
                                        Vocabulary::kMaxSize - 1));
  }
  if (token.content.empty()) return absl::OkStatus();
  config->added_tokens[static_cast<int32_t>(id)] = std::move(token);
  if (config->added_tokens.size() > TokenizerConfig::kMaxAddedTokens) {
    return Malformed(file, "too many added tokens");
  }
  return absl::OkStatus();
}

// {"0": {"content": "<unk>", …}, …}
absl::Status ReadAddedTokensDecoder(const json& decoder, const std::string& file,
                                    TokenizerConfig* config) {
  if (!decoder.is_object()) return Malformed(file, "added_tokens_decoder is not an object");
  for (const auto& [key, value] : decoder.items()) {
    int64_t id = -1;
    if (!absl::SimpleAtoi(key, &id)) {
      return Malformed(file, "a key of added_tokens_decoder is not a token id");
    }
    absl::StatusOr<AddedToken> token =
        ReadToken(value, absl::StrCat("added_tokens_decoder[", id, "]"), file);
    if (!token.ok()) return token.status();
    if (absl::Status status = AddById(id, *std::move(token), file, config); !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

absl::Status ReadChatTemplate(const json& object, const std::string& file,
                              TokenizerConfig* config) {
  const json* value = Find(object, "chat_template");
  if (value == nullptr) return absl::OkStatus();
  if (value->is_string()) {
    config->chat_template = value->get<std::string>();
    return absl::OkStatus();
  }
  if (!value->is_array()) return Malformed(file, "chat_template is neither a string nor a list");
  for (const json& named : *value) {
    const json* name = named.is_object() ? Find(named, "name") : nullptr;
    const json* text = named.is_object() ? Find(named, "template") : nullptr;
    if (name == nullptr || !name->is_string() || text == nullptr || !text->is_string()) {
      return Malformed(file, "an entry of chat_template has no name or no template");
    }
    if (value->size() == 1 || *name == "default") config->chat_template = text->get<std::string>();
  }
  return absl::OkStatus();
}

// What tokenizer_config.json itself says but for the named tokens; has_decoder: whether it lists
// the added tokens.
absl::StatusOr<TokenizerConfig> ReadConfig(const json& object, const std::string& file,
                                           bool* has_decoder) {
  TokenizerConfig config;
  for (const auto& [key, flag] : {std::pair("legacy", &config.legacy),
                                  {"add_bos_token", &config.add_bos},
                                  {"add_eos_token", &config.add_eos},
                                  {"add_prefix_space", &config.add_prefix_space}}) {
    if (absl::Status status = ReadFlag(object, key, file, flag); !status.ok()) return status;
  }
  if (absl::Status status = ReadChatTemplate(object, file, &config); !status.ok()) return status;
  const json* decoder = Find(object, "added_tokens_decoder");
  *has_decoder = decoder != nullptr;
  if (decoder != nullptr) {
    absl::Status status = ReadAddedTokensDecoder(*decoder, file, &config);
    if (!status.ok()) return status;
  }
  return config;
}

// Parses an optional file beside tokenizer_config.json; an empty object where there is none.
absl::StatusOr<json> ReadOptionalObject(const std::string& file) {
  absl::StatusOr<std::string> text = ReadTextFile(file, kMaxFileBytes);
  if (absl::IsNotFound(text.status())) return json::object();
  if (!text.ok()) return text.status();
  return ParseObject(*text, file);
}

// {"<|im_end|>": 32000, …}
absl::Status ReadAddedTokensFile(const std::string& file, const NamedTokens& named,
                                 TokenizerConfig* config) {
  absl::StatusOr<json> object = ReadOptionalObject(file);
  if (!object.ok()) return object.status();
  for (const auto& [content, id] : object->items()) {
    if (!id.is_number_integer()) return Malformed(file, "a value is not a token id");
    absl::StatusOr<AddedToken> token = ReadToken(json(content), "a token", file);
    if (!token.ok()) return token.status();
    token->special = IsNamed(named, content);
    absl::Status status = AddById(id.get<int64_t>(), *std::move(token), file, config);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

// {"added_tokens": [{"id": 0, "content": "<unk>", …}, …], …}
absl::Status ReadTokenizerJson(const std::string& file, TokenizerConfig* config) {
  absl::StatusOr<json> object = ReadOptionalObject(file);
  if (!object.ok()) return object.status();
  const json* added = Find(*object, "added_tokens");
  if (added == nullptr) return absl::OkStatus();
  if (!added->is_array()) return Malformed(file, "added_tokens is not a list");
  for (const json& value : *added) {
    const json* id = value.is_object() ? Find(value, "id") : nullptr;
    if (id == nullptr || !id->is_number_integer()) {
      return Malformed(file, "an entry of added_tokens has no id");
    }
    absl::StatusOr<AddedToken> token = ReadToken(value, "added_tokens", file);
    if (!token.ok()) return token.status();
    absl::Status status = AddById(id->get<int64_t>(), *std::move(token), file, config);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

// The files in which older checkpoints keep their tokens.
absl::Status ReadOlderFiles(const std::string& directory, NamedTokens* named,
                            TokenizerConfig* config) {
  const std::string map_file = absl::StrCat(directory, "/special_tokens_map.json");
  absl::StatusOr<json> map = ReadOptionalObject(map_file);
  if (!map.ok()) return map.status();
  absl::Status status = ReadNamedTokens(*map, map_file, named);
  if (!status.ok()) return status;
  status = ReadAddedTokensFile(absl::StrCat(directory, "/added_tokens.json"), *named, config);
  if (!status.ok()) return status;
  return ReadTokenizerJson(absl::StrCat(directory, "/tokenizer.json"), config);
}

}  // namespace

absl::StatusOr<std::string> ReadTextFile(const std::string& path, size_t max_bytes) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened"));
  const std::streamoff size = file.tellg();
  if (size < 0) return absl::NotFoundError(absl::StrCat(path, ": is not a file"));
  if (static_cast<uint64_t>(size) > max_bytes) {
    return Malformed(path, absl::StrCat("is longer than ", max_bytes, " bytes"));
  }
  std::string text(static_cast<size_t>(size), '\0');
  file.seekg(0);
  if (!file.read(text.data(), size)) return Malformed(path, "cannot be read");
  return text;
}

absl::StatusOr<TokenizerConfig> ParseTokenizerConfig(absl::string_view text,
                                                     const std::string& file) {
  absl::StatusOr<json> object = ParseObject(text, file);
  if (!object.ok()) return object.status();
  NamedTokens named;
  absl::Status status = ReadNamedTokens(*object, file, &named);
  if (!status.ok()) return status;
  bool has_decoder = false;
  absl::StatusOr<TokenizerConfig> config = ReadConfig(*object, file, &has_decoder);
  if (config.ok()) StoreNamedTokens(named, &*config);
  return config;
}

absl::StatusOr<TokenizerConfig> LoadTokenizerConfig(const std::string& directory) {
  const std::string file = absl::StrCat(directory, "/tokenizer_config.json");
  absl::StatusOr<json> object = ReadOptionalObject(file);
  if (!object.ok()) return object.status();
  NamedTokens named;
  absl::Status status = ReadNamedTokens(*object, file, &named);
  if (!status.ok()) return status;
  bool has_decoder = false;
  absl::StatusOr<TokenizerConfig> config = ReadConfig(*object, file, &has_decoder);
  if (!config.ok()) return config;
  if (!has_decoder) {
    status = ReadOlderFiles(directory, &named, &*config);
    if (!status.ok()) return status;
  }
  StoreNamedTokens(named, &*config);
  absl::StatusOr<std::string> chat_template =
      ReadTextFile(absl::StrCat(directory, "/chat_template.jinja"), kMaxFileBytes);
  if (chat_template.ok()) {
    config->chat_template = *std::move(chat_template);
  } else if (!absl::IsNotFound(chat_template.status())) {
    return chat_template.status();
  }
  return config;
}

}  // namespace marcoro
