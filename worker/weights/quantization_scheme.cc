#include "worker/weights/quantization_scheme.h"

#include <regex.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "worker/model/json_nesting.h"
#include "worker/model/text_file.h"

namespace marcoro {
namespace {

using nlohmann::json;

constexpr size_t kMaxConfigBytes = 4u << 20;
constexpr size_t kMaxEntries = 2000;  // of a list of modules
constexpr size_t kMaxEntryBytes = 512;
constexpr size_t kMaxGroups = 64;
constexpr int64_t kMaxBlock = 1 << 16;
constexpr std::string_view kRegexPrefix = "re:";

// Back references and counted repetitions may take a matcher exponential time or memory.
bool IsTameRegex(std::string_view pattern) {
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] == '{') return false;
    if (pattern[i] == '\\' && i + 1 < pattern.size() && absl::ascii_isdigit(pattern[++i])) {
      return false;
    }
  }
  return true;
}

// Compiles "re:…"'s pattern so that it must match from a name's beginning. False if it is none.
bool CompileRegex(std::string_view pattern, regex_t* regex) {
  const std::string anchored = absl::StrCat("^(", std::string(pattern), ")");
  return IsTameRegex(pattern) && regcomp(regex, anchored.c_str(), REG_EXTENDED | REG_NOSUB) == 0;
}

// '*' stands for any text. Takes time proportional to the product of the lengths at most.
bool MatchesGlob(std::string_view pattern, std::string_view text) {
  size_t star = std::string_view::npos;  // the last one seen, and where the text after it begins
  size_t resume = 0;
  size_t at = 0;
  for (size_t i = 0; i < text.size();) {
    if (at < pattern.size() && pattern[at] == '*') {
      star = at++;
      resume = i;
    } else if (at < pattern.size() && pattern[at] == text[i]) {
      ++at;
      ++i;
    } else if (star != std::string_view::npos) {
      at = star + 1;
      i = ++resume;
    } else {
      return false;
    }
  }
  return pattern.find_first_not_of('*', at) == std::string_view::npos;
}

// Never goes deep into a value, which may be nested without end.
std::string Quote(const json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "a list";
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  if (text.size() > 60) text = absl::StrCat(text.substr(0, 60), "…");
  return text;
}

const json* Member(const json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

}  // namespace

// Reads one quantization object. The first failure is kept.
class SchemeReader {
 public:
  explicit SchemeReader(std::string where) : where_(std::move(where)) {}

  absl::StatusOr<std::optional<QuantizationScheme>> Read(const json& root) {
    if (!root.is_object()) {
      Fail("", "must be an object");
      return status_;
    }
    const std::string method = MethodOf(root);
    scheme_.method_ = method;
    scheme_.scale_suffix_ = ".weight_scale";
    if (method == "fp8") {
      ReadFp8(root);
    } else if (method == "compressed-tensors") {
      ReadCompressedTensors(root);
    } else if (method == "modelopt") {
      ReadModelopt(root);
    } else {
      Fail("quant_method",
           absl::StrCat("is ", method.empty() ? "missing" : absl::StrCat("\"", method, "\""),
                        ": fp8, compressed-tensors and modelopt can be read"));
    }
    if (!status_.ok()) return status_;
    return std::optional<QuantizationScheme>(std::move(scheme_));
  }

 private:
  // hf_quant_config.json has no quant_method: modelopt alone writes it.
  static std::string MethodOf(const json& root) {
    const json* method = Member(root, "quant_method");
    if (method != nullptr && method->is_string()) return method->get<std::string>();
    return method == nullptr && Member(root, "quant_algo") != nullptr ? "modelopt" : "";
  }

  void ReadFp8(const json& root) {
    QuantizationGroup group{.targets = {"Linear"}};
    if (const json* block = Member(root, "weight_block_size")) {
      group.layout = ScaleLayout::kBlock;
      ReadBlock("weight_block_size", *block, group);
      scheme_.scale_suffix_ = ".weight_scale_inv";
    }
    scheme_.groups_.push_back(std::move(group));
    for (const char* key : {"ignored_layers", "modules_to_not_convert"}) ReadIgnored(root, key);
  }

  void ReadCompressedTensors(const json& root) {
    const json* groups = Member(root, "config_groups");
    if (groups == nullptr || !groups->is_object() || groups->empty() ||
        groups->size() > kMaxGroups) {
      return Fail("config_groups", "must be an object of groups");
    }
    const json* format = Member(root, "format");
    for (const auto& [name, group] : groups->items()) {
      ReadGroup(absl::StrCat("config_groups.", name), group, format);
    }
    if (const json* sparsity = Member(root, "sparsity_config")) {
      const json* sparse_format = sparsity->is_object() ? Member(*sparsity, "format") : nullptr;
      if (sparse_format != nullptr && *sparse_format != "dense") {
        Fail("sparsity_config.format",
             absl::StrCat("must be \"dense\", is ", Quote(*sparse_format)));
      }
    }
    ReadIgnored(root, "ignore");
  }

  void ReadGroup(const std::string& key, const json& group, const json* default_format) {
    if (!group.is_object()) return Fail(key, "must be an object");
    const json* weights = Member(group, "weights");
    if (weights == nullptr) return;  // of activations alone
    if (!weights->is_object()) return Fail(absl::StrCat(key, ".weights"), "must be an object");
    const json* format = Member(group, "format");
    if (format == nullptr) format = default_format;
    if (format != nullptr && *format != "float-quantized" && *format != "naive-quantized") {
      return Fail("format", absl::StrCat("must be \"float-quantized\", is ", Quote(*format)));
    }
    const json bits = weights->value("num_bits", json());
    const json type = weights->value("type", json());
    if (bits != 8 || type != "float") {
      return Fail(absl::StrCat(key, ".weights"),
                  absl::StrCat("must be 8 bits of type \"float\", are ", Quote(bits), " of type ",
                               Quote(type)));
    }
    if (weights->value("symmetric", json()) == false) {
      return Fail(absl::StrCat(key, ".weights.symmetric"),
                  "is false: zero points are not supported");
    }
    QuantizationGroup result;
    ReadStrategy(absl::StrCat(key, ".weights"), *weights, result);
    if (const json* targets = Member(group, "targets")) {
      ReadNames(absl::StrCat(key, ".targets"), *targets, result.targets);
    } else {
      Fail(absl::StrCat(key, ".targets"), "is missing");
    }
    scheme_.groups_.push_back(std::move(result));
  }

  void ReadStrategy(const std::string& key, const json& weights, QuantizationGroup& group) {
    const json strategy = weights.value("strategy", json());
    if (strategy == "tensor") {
      group.layout = ScaleLayout::kTensor;
    } else if (strategy == "channel") {
      group.layout = ScaleLayout::kRow;
    } else if (strategy == "block") {
      group.layout = ScaleLayout::kBlock;
      ReadBlock(absl::StrCat(key, ".block_structure"), weights.value("block_structure", json()),
                group);
    } else {
      Fail(absl::StrCat(key, ".strategy"),
           absl::StrCat("must be tensor, channel or block, is ", Quote(strategy)));
    }
  }

  void ReadModelopt(const json& root) {
    // Flat, or as in hf_quant_config.json.
    const json* inner = Member(root, "quantization");
    const json& object = inner != nullptr && inner->is_object() ? *inner : root;
    QuantizationGroup group{.targets = {"Linear"}};
    const json algorithm = object.value("quant_algo", json());
    if (algorithm == "FP8_PER_CHANNEL_PER_TOKEN") {
      group.layout = ScaleLayout::kRow;
    } else if (algorithm != "FP8") {
      return Fail("quant_algo",
                  absl::StrCat("must be FP8 or FP8_PER_CHANNEL_PER_TOKEN, is ", Quote(algorithm)));
    }
    scheme_.groups_.push_back(std::move(group));
    for (const char* key : {"ignore", "exclude_modules"}) ReadIgnored(object, key);
  }

  // [128, 128], or "128x128".
  void ReadBlock(const std::string& key, const json& value, QuantizationGroup& group) {
    std::vector<int64_t> sizes;
    if (value.is_string()) {
      for (const absl::string_view part : absl::StrSplit(value.get<std::string>(), 'x')) {
        int64_t size = 0;
        sizes.push_back(absl::SimpleAtoi(part, &size) ? size : 0);
      }
    } else if (value.is_array()) {
      for (const json& item : value) {
        sizes.push_back(item.is_number_unsigned() && item <= kMaxBlock ? item.get<int64_t>() : 0);
      }
    }
    if (sizes.size() != 2 || std::min(sizes[0], sizes[1]) < 1 ||
        std::max(sizes[0], sizes[1]) > kMaxBlock) {
      return Fail(key, absl::StrCat("must be two sizes, is ", Quote(value)));
    }
    group.block_rows = sizes[0];
    group.block_columns = sizes[1];
  }

  void ReadIgnored(const json& object, const char* key) {
    if (const json* value = Member(object, key)) ReadNames(key, *value, scheme_.ignored_);
  }

  void ReadNames(const std::string& key, const json& value, std::vector<std::string>& names) {
    if (!value.is_array() || value.size() > kMaxEntries) {
      return Fail(key, "must be a list of names");
    }
    for (const json& item : value) {
      if (!item.is_string() || item.get_ref<const std::string&>().size() > kMaxEntryBytes) {
        return Fail(key, absl::StrCat("must be a list of names, has ", Quote(item)));
      }
      const std::string name = item.get<std::string>();
      if (absl::StartsWith(name, "re:")) {
        regex_t regex;
        if (!CompileRegex(std::string_view(name).substr(kRegexPrefix.size()), &regex)) {
          return Fail(
              key, absl::StrCat("has a regular expression that is not understood: ", Quote(item)));
        }
        regfree(&regex);
      }
      names.push_back(name);
    }
  }

  void Fail(const std::string& key, const std::string& what) {
    if (!status_.ok()) return;
    status_ =
        absl::InvalidArgumentError(absl::StrCat(where_, key.empty() ? "" : ".", key, " ", what));
  }

  const std::string where_;
  QuantizationScheme scheme_;
  absl::Status status_;
};

namespace {

// The text of a file that may be absent.
absl::StatusOr<std::string> ReadOptional(const std::string& path) {
  absl::StatusOr<std::string> text = ReadSmallFile(path, kMaxConfigBytes);
  if (absl::IsNotFound(text.status())) return std::string();
  return text;
}

absl::StatusOr<json> ParseObject(const std::string& text, const std::string& file) {
  if (absl::Status status = CheckJsonNesting(text, file); !status.ok()) return status;
  json root = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!root.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": not a JSON object"));
  }
  return root;
}

}  // namespace

absl::StatusOr<std::optional<QuantizationScheme>> QuantizationScheme::Load(
    const std::string& directory) {
  absl::StatusOr<std::string> config = ReadOptional(absl::StrCat(directory, "/config.json"));
  if (!config.ok()) return config.status();
  absl::StatusOr<std::string> hf_quant_config =
      ReadOptional(absl::StrCat(directory, "/hf_quant_config.json"));
  if (!hf_quant_config.ok()) return hf_quant_config.status();
  return Parse(*config, *hf_quant_config, directory);
}

absl::StatusOr<std::optional<QuantizationScheme>> QuantizationScheme::Parse(
    const std::string& config_json, const std::string& hf_quant_config,
    const std::string& directory) {
  if (!config_json.empty()) {
    const std::string file = absl::StrCat(directory, "/config.json");
    absl::StatusOr<json> root = ParseObject(config_json, file);
    if (!root.ok()) return root.status();
    // The second is an older name of the first.
    for (const char* key : {"quantization_config", "compression_config"}) {
      const json* value = Member(*root, key);
      if (value != nullptr) return SchemeReader(absl::StrCat(file, ": ", key)).Read(*value);
    }
  }
  if (hf_quant_config.empty()) return std::optional<QuantizationScheme>();
  const std::string file = absl::StrCat(directory, "/hf_quant_config.json");
  absl::StatusOr<json> root = ParseObject(hf_quant_config, file);
  if (!root.ok()) return root.status();
  return SchemeReader(absl::StrCat(file, ": quantization"))
      .Read(root->value("quantization", json()));
}

bool QuantizationScheme::Matches(const std::string& entry, std::string_view module) {
  const std::string name(module);
  if (entry == "Linear" || entry == name || absl::StartsWith(name, absl::StrCat(entry, "."))) {
    return true;
  }
  if (absl::StartsWith(entry, "re:")) {
    regex_t regex;
    if (!CompileRegex(std::string_view(entry).substr(kRegexPrefix.size()), &regex)) return false;
    absl::Cleanup free_regex = [&regex] { regfree(&regex); };
    return regexec(&regex, name.c_str(), 0, nullptr, 0) == 0;
  }
  return MatchesGlob(entry, name);
}

const QuantizationGroup* QuantizationScheme::GroupOf(std::string_view module) const {
  for (const std::string& entry : ignored_) {
    if (Matches(entry, module)) return nullptr;
  }
  for (const QuantizationGroup& group : groups_) {
    for (const std::string& target : group.targets) {
      if (Matches(target, module)) return &group;
    }
  }
  return nullptr;
}

std::string QuantizationScheme::ScaleName(std::string_view module) const {
  return absl::StrCat(std::string(module), scale_suffix_);
}

std::string QuantizationScheme::Description() const {
  std::vector<std::string> layouts;
  for (const QuantizationGroup& group : groups_) {
    const std::string layout =
        group.layout == ScaleLayout::kTensor ? "a scale per tensor"
        : group.layout == ScaleLayout::kRow
            ? "a scale per row"
            : absl::StrCat("a scale per block of ", group.block_rows, "x", group.block_columns);
    if (layouts.empty() || layouts.back() != layout) layouts.push_back(layout);
  }
  return absl::StrCat(method_, " FP8, ", absl::StrJoin(layouts, " or "));
}

}  // namespace marcoro
