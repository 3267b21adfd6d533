#include "coordinator/api/model_files.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "coordinator/text/tokenizer_config.h"

namespace marcoro {
namespace {

using nlohmann::json;

constexpr size_t kMaxFileBytes = 4 << 20;
constexpr size_t kMaxEosIds = 64;

absl::Status Bad(const std::string& path, absl::string_view field, absl::string_view expected) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", field, " must be ", expected));
}

absl::StatusOr<json> ReadJsonObject(const std::string& path) {
  absl::StatusOr<std::string> text = ReadTextFile(path, kMaxFileBytes);
  if (!text.ok()) return text.status();
  json object = json::parse(*text, /*cb=*/nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return absl::InvalidArgumentError(path + " is not a JSON object");
  return object;
}

// The value of a key, or null if it is absent or null.
const json* Find(const json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

absl::StatusOr<uint32_t> RequiredSize(const std::string& path, const json& object,
                                      const char* key) {
  const json* value = Find(object, key);
  if (value == nullptr || !value->is_number_unsigned() || value->get<uint64_t>() == 0 ||
      value->get<uint64_t>() > std::numeric_limits<int32_t>::max()) {
    return Bad(path, key, "a whole number from 1 to 2147483647");
  }
  return value->get<uint32_t>();
}

// One id or a list of them.
absl::StatusOr<std::vector<uint32_t>> EosIds(const std::string& path, const json& object,
                                             uint32_t vocabulary_size) {
  constexpr const char* kKey = "eos_token_id";
  const json* value = Find(object, kKey);
  if (value == nullptr) return std::vector<uint32_t>();
  // Not copied: the JSON library does that by recursion, however deep a value is nested.
  std::vector<const json*> listed = {value};
  if (value->is_array()) {
    listed.clear();
    for (const json& id : *value) listed.push_back(&id);
  }
  std::vector<uint32_t> ids;
  for (const json* id : listed) {
    if (!id->is_number_unsigned() || id->get<uint64_t>() >= vocabulary_size ||
        ids.size() == kMaxEosIds) {
      return Bad(path, kKey,
                 absl::StrCat("a token id below ", vocabulary_size, ", or a list of at most ",
                              kMaxEosIds, " of them"));
    }
    ids.push_back(id->get<uint32_t>());
  }
  return ids;
}

// A number in [low, high], or (low, high] if `open`.
absl::Status ReadNumber(const std::string& path, const json& object, const char* key, double low,
                        double high, bool open, std::optional<float>* target) {
  const json* value = Find(object, key);
  if (value == nullptr) return absl::OkStatus();
  // As it is used: what is smaller than any float is a zero.
  constexpr double kLargest = std::numeric_limits<float>::max();
  const double number =
      value->is_number() ? static_cast<float>(std::clamp(value->get<double>(), -kLargest, kLargest))
                         : std::nan("");
  if (!(number <= high && (open ? number > low : number >= low))) {
    return Bad(path, key, absl::StrCat("a number in ", open ? "(" : "[", low, ", ", high, "]"));
  }
  *target = static_cast<float>(number);
  return absl::OkStatus();
}

absl::Status ReadDefaults(const std::string& path, const json& object,
                          GenerationDefaults* defaults) {
  absl::Status status =
      ReadNumber(path, object, "temperature", 0, 100, false, &defaults->temperature);
  status.Update(ReadNumber(path, object, "top_p", 0, 1, true, &defaults->top_p));
  status.Update(ReadNumber(path, object, "min_p", 0, 1, false, &defaults->min_p));
  status.Update(ReadNumber(path, object, "typical_p", 0, 1, true, &defaults->typical_p));
  status.Update(
      ReadNumber(path, object, "repetition_penalty", 0, 100, true, &defaults->repetition_penalty));
  if (const json* top_k = Find(object, "top_k")) {
    if (!top_k->is_number_unsigned() ||
        top_k->get<uint64_t>() > std::numeric_limits<int32_t>::max()) {
      status.Update(Bad(path, "top_k", "a whole number from 0 to 2147483647"));
    } else {
      defaults->top_k = top_k->get<uint32_t>();
    }
  }
  if (const json* do_sample = Find(object, "do_sample")) {
    if (!do_sample->is_boolean()) {
      status.Update(Bad(path, "do_sample", "true or false"));
    } else if (!do_sample->get<bool>()) {
      defaults->temperature = 0;
    }
  }
  return status;
}

}  // namespace

absl::StatusOr<ModelConfigFile> ReadModelConfig(const std::string& directory) {
  const std::string path = directory + "/config.json";
  absl::StatusOr<json> object = ReadJsonObject(path);
  if (!object.ok()) return object.status();
  absl::StatusOr<uint32_t> vocabulary = RequiredSize(path, *object, "vocab_size");
  if (!vocabulary.ok()) return vocabulary.status();
  absl::StatusOr<uint32_t> positions = RequiredSize(path, *object, "max_position_embeddings");
  if (!positions.ok()) return positions.status();
  absl::StatusOr<std::vector<uint32_t>> eos = EosIds(path, *object, *vocabulary);
  if (!eos.ok()) return eos.status();
  const json* architectures = Find(*object, "architectures");
  if (architectures == nullptr || !architectures->is_array() || architectures->empty() ||
      !architectures->front().is_string()) {
    return Bad(path, "architectures", "a list of names");
  }
  return ModelConfigFile{architectures->front().get<std::string>(), *vocabulary, *positions,
                         *std::move(eos)};
}

absl::StatusOr<GenerationConfigFile> ReadGenerationConfig(const std::string& directory,
                                                          uint32_t vocabulary_size) {
  const std::string path = directory + "/generation_config.json";
  absl::StatusOr<json> object = ReadJsonObject(path);
  if (absl::IsNotFound(object.status())) return GenerationConfigFile();
  if (!object.ok()) return object.status();
  absl::StatusOr<std::vector<uint32_t>> eos = EosIds(path, *object, vocabulary_size);
  if (!eos.ok()) return eos.status();
  GenerationConfigFile file;
  file.eos_ids = *std::move(eos);
  if (absl::Status status = ReadDefaults(path, *object, &file.defaults); !status.ok()) {
    return status;
  }
  return file;
}

std::string ReadLicense(const std::string& directory) {
  absl::StatusOr<std::string> text = ReadTextFile(directory + "/README.md", kMaxFileBytes);
  if (!text.ok()) return "";
  std::istringstream lines(*std::move(text));
  std::string line;
  if (!std::getline(lines, line) || absl::StripAsciiWhitespace(line) != "---") return "";
  while (std::getline(lines, line) && absl::StripAsciiWhitespace(line) != "---") {
    absl::string_view value = line;
    if (absl::ConsumePrefix(&value, "license:")) {
      return std::string(absl::StripAsciiWhitespace(value));
    }
  }
  return "";
}

}  // namespace marcoro
