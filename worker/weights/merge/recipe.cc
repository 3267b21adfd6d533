#include "worker/weights/merge/recipe.h"

#include <algorithm>
#include <exception>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "worker/model/text_file.h"
#include "worker/weights/merge/known_names.h"
#include "worker/weights/merge/yaml_reader.h"

namespace marcoro {
namespace {

using Entry = YamlReader::Entry;

constexpr size_t kMaxParameterCases = 1024;
constexpr size_t kMaxGradientValues = 4096;
constexpr size_t kMaxTemplateBytes = 256 << 10;

// The one part that a model of this architecture has, by mergekit's name.
constexpr std::string_view kModule = "default";

class RecipeReader {
 public:
  RecipeReader(const YAML::Node& root, const std::string& file) : root_(root), reader_(file) {
    recipe_.file = file;
  }

  absl::StatusOr<Recipe> Read() {
    ReadRoot();
    if (!reader_.status().ok()) return reader_.status();
    return std::move(recipe_);
  }

 private:
  void ReadRoot();
  void ReadOption(const Entry& entry);
  void ReadTokenizer(const Entry& entry);
  void ReadModules(const Entry& entry);
  // `slices` or `models`.
  void ReadInputs(const Entry& entry);
  void ReadSlices(const YAML::Node& node);
  void ReadModels(const YAML::Node& node);
  RecipeSlice ReadSlice(const YAML::Node& node);
  RecipeSource ReadSource(const YAML::Node& node);
  void ReadLayerRange(const YAML::Node& node, RecipeSource& source);

  ParameterSettings ReadParameters(const YAML::Node& node);
  ParameterCase ReadCase(const YAML::Node& node, const std::string& name);
  void ReadValues(const YAML::Node& node, const std::string& name, ParameterCase& into);

  RecipeText ReadText(const Entry& entry) {
    return {reader_.Text(entry.value, entry.key), YamlReader::PositionOf(entry.value)};
  }
  std::string ReadDType(const Entry& entry);

  const YAML::Node& root_;
  YamlReader reader_;
  Recipe recipe_;
};

void RecipeReader::ReadRoot() {
  const std::vector<Entry> entries = reader_.Mapping(
      root_, "a recipe",
      {"slices", "models", "modules", "merge_method", "base_model", "parameters", "dtype",
       "out_dtype", "tokenizer_source", "tokenizer", "chat_template", "seed"});
  const Entry* inputs = nullptr;
  for (const Entry& entry : entries) {
    if (entry.key != "slices" && entry.key != "models" && entry.key != "modules") {
      ReadOption(entry);
      continue;
    }
    if (inputs != nullptr) {
      reader_.Fail(entry.position,
                   absl::StrCat("a recipe has either ", inputs->key, " or ", entry.key));
    }
    inputs = &entry;
  }
  const SourcePosition start = YamlReader::PositionOf(root_);
  if (inputs == nullptr) return reader_.Fail(start, "slices, models or modules is missing");
  if (recipe_.merge_method.text.empty()) return reader_.Fail(start, "merge_method is missing");
  inputs->key == "modules" ? ReadModules(*inputs) : ReadInputs(*inputs);
}

void RecipeReader::ReadOption(const Entry& entry) {
  if (entry.key == "merge_method") recipe_.merge_method = ReadText(entry);
  if (entry.key == "base_model") recipe_.base_model = ReadText(entry);
  if (entry.key == "parameters") recipe_.parameters = ReadParameters(entry.value);
  if (entry.key == "dtype") recipe_.dtype = ReadDType(entry);
  if (entry.key == "out_dtype") recipe_.out_dtype = ReadDType(entry);
  if (entry.key == "tokenizer" || entry.key == "tokenizer_source") ReadTokenizer(entry);
  if (entry.key == "seed") recipe_.seed = reader_.Integer(entry.value, "seed", UINT64_MAX);
  if (entry.key == "chat_template") {
    recipe_.chat_template = {reader_.Text(entry.value, entry.key, kMaxTemplateBytes),
                             YamlReader::PositionOf(entry.value)};
  }
}

// tokenizer_source: S is short for tokenizer: {source: S}.
void RecipeReader::ReadTokenizer(const Entry& entry) {
  if (recipe_.tokenizer_source.has_value()) {
    reader_.Fail(entry.position, "a recipe has either tokenizer_source or tokenizer");
  }
  if (entry.key == "tokenizer_source") {
    recipe_.tokenizer_source = ReadText(entry);
    return;
  }
  recipe_.tokenizer_source = {"union", entry.position};
  for (const Entry& part : reader_.Mapping(entry.value, "tokenizer", {"source"})) {
    recipe_.tokenizer_source = ReadText(part);
  }
}

void RecipeReader::ReadModules(const Entry& entry) {
  for (const Entry& module : reader_.Mapping(entry.value, "modules", {kModule})) {
    const Entry* inputs = nullptr;
    const std::vector<Entry> parts =
        reader_.Mapping(module.value, "a module", {"slices", "models", "parameters"});
    for (const Entry& part : parts) {
      if (part.key == "parameters") {
        recipe_.module_parameters = ReadParameters(part.value);
      } else if (inputs == nullptr) {
        inputs = &part;
      } else {
        reader_.Fail(part.position, "a module has either slices or models");
      }
    }
    if (inputs != nullptr) ReadInputs(*inputs);
  }
  if (recipe_.slices.empty()) reader_.Fail(entry.position, "slices or models is missing");
}

void RecipeReader::ReadInputs(const Entry& entry) {
  entry.key == "slices" ? ReadSlices(entry.value) : ReadModels(entry.value);
}

void RecipeReader::ReadSlices(const YAML::Node& node) {
  for (const YAML::Node& item : reader_.List(node, "slices", kMaxRecipeSlices)) {
    recipe_.slices.push_back(ReadSlice(item));
  }
}

RecipeSlice RecipeReader::ReadSlice(const YAML::Node& node) {
  RecipeSlice slice;
  slice.position = YamlReader::PositionOf(node);
  for (const Entry& entry :
       reader_.Mapping(node, "a slice", {"sources", "base_model", "parameters"})) {
    if (entry.key == "base_model") slice.base_model = ReadText(entry);
    if (entry.key == "parameters") slice.parameters = ReadParameters(entry.value);
    if (entry.key != "sources") continue;
    for (const YAML::Node& item : reader_.List(entry.value, "sources", kMaxSliceSources)) {
      slice.sources.push_back(ReadSource(item));
    }
  }
  if (slice.sources.empty()) reader_.Fail(slice.position, "sources is missing");
  return slice;
}

RecipeSource RecipeReader::ReadSource(const YAML::Node& node) {
  RecipeSource source;
  bool has_range = false;
  for (const Entry& entry :
       reader_.Mapping(node, "a source", {"model", "layer_range", "parameters"})) {
    if (entry.key == "model") source.model = ReadText(entry);
    if (entry.key == "parameters") source.parameters = ReadParameters(entry.value);
    if (entry.key != "layer_range") continue;
    has_range = true;
    ReadLayerRange(entry.value, source);
  }
  const SourcePosition position = YamlReader::PositionOf(node);
  if (source.model.text.empty()) reader_.Fail(position, "model is missing");
  if (!has_range) reader_.Fail(position, "layer_range is missing");
  return source;
}

void RecipeReader::ReadLayerRange(const YAML::Node& node, RecipeSource& source) {
  source.range_position = YamlReader::PositionOf(node);
  const std::vector<YAML::Node> ends = reader_.List(node, "layer_range", 2);
  if (ends.size() != 2) {
    return reader_.Fail(source.range_position, "layer_range must be a list of two numbers");
  }
  source.first_layer = static_cast<int32_t>(reader_.Integer(ends[0], "a layer", kMaxMergedLayers));
  source.end_layer = static_cast<int32_t>(reader_.Integer(ends[1], "a layer", kMaxMergedLayers));
  if (source.first_layer >= source.end_layer) {
    reader_.Fail(source.range_position,
                 absl::StrCat("layer_range [", source.first_layer, ", ", source.end_layer,
                              "] has no layers: its end comes after its last layer"));
  }
}

void RecipeReader::ReadModels(const YAML::Node& node) {
  RecipeSlice slice;
  slice.position = YamlReader::PositionOf(node);
  for (const YAML::Node& item : reader_.List(node, "models", kMaxSliceSources)) {
    RecipeSource source;
    source.all_layers = true;
    source.range_position = YamlReader::PositionOf(item);
    for (const Entry& entry : reader_.Mapping(item, "a model", {"model", "parameters"})) {
      if (entry.key == "model") source.model = ReadText(entry);
      if (entry.key == "parameters") source.parameters = ReadParameters(entry.value);
    }
    if (source.model.text.empty()) reader_.Fail(source.range_position, "model is missing");
    slice.sources.push_back(std::move(source));
  }
  recipe_.slices.push_back(std::move(slice));
}

ParameterSettings RecipeReader::ReadParameters(const YAML::Node& node) {
  ParameterSettings settings;
  for (const Entry& entry : reader_.Mapping(node, "parameters")) {
    ParameterSetting setting;
    setting.name = entry.key;
    setting.position = entry.position;
    // A list is one gradient, or cases of mappings with filters.
    if (entry.value.IsSequence() && entry.value.size() > 0 && !entry.value[0].IsScalar()) {
      for (const YAML::Node& item : reader_.List(entry.value, entry.key, kMaxParameterCases)) {
        setting.cases.push_back(ReadCase(item, entry.key));
      }
    } else if (entry.value.IsMap()) {
      setting.cases.push_back(ReadCase(entry.value, entry.key));
    } else {
      ReadValues(entry.value, entry.key, setting.cases.emplace_back());
    }
    settings.push_back(std::move(setting));
  }
  return settings;
}

ParameterCase RecipeReader::ReadCase(const YAML::Node& node, const std::string& name) {
  ParameterCase result;
  const std::string what = absl::StrCat("a case of ", name);
  for (const Entry& entry : reader_.Mapping(node, what, {"filter", "value"})) {
    if (entry.key == "value") ReadValues(entry.value, name, result);
    const bool is_empty = entry.value.IsScalar() && entry.value.Scalar().empty();
    if (entry.key == "filter" && !is_empty) result.filter = reader_.Text(entry.value, "filter");
  }
  if (result.values.empty()) reader_.Fail(YamlReader::PositionOf(node), "value is missing");
  return result;
}

void RecipeReader::ReadValues(const YAML::Node& node, const std::string& name,
                              ParameterCase& into) {
  if (node.IsScalar()) {
    into.values.push_back(reader_.Number(node, name));
    return;
  }
  for (const YAML::Node& item : reader_.List(node, name, kMaxGradientValues)) {
    into.discrete = into.discrete || YamlReader::IsBoolean(item);
    into.values.push_back(reader_.Number(item, name));
  }
}

std::string RecipeReader::ReadDType(const Entry& entry) {
  const std::string text = reader_.Text(entry.value, entry.key);
  const std::string name(absl::StripPrefix(text, "torch."));
  const std::vector<std::string_view> known = {"bfloat16", "float16", "float32"};
  if (std::find(known.begin(), known.end(), name) == known.end()) {
    reader_.Fail(
        YamlReader::PositionOf(entry.value),
        absl::StrCat("unknown ", entry.key, " ", Quoted(text), " ", KnownNames(name, known)));
  }
  return name;
}

}  // namespace

absl::StatusOr<Recipe> ParseRecipe(const std::string& text, const std::string& file) {
  if (text.size() > kMaxRecipeBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": longer than ", kMaxRecipeBytes, " bytes"));
  }
  absl::StatusOr<YAML::Node> root = ParseYaml(text, file);
  if (!root.ok()) return root.status();
  try {  // what the checks before have overlooked
    return RecipeReader(*root, file).Read();
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": ", error.what()));
  }
}

absl::StatusOr<Recipe> LoadRecipe(const std::string& path) {
  absl::StatusOr<std::string> text = ReadSmallFile(path, kMaxRecipeBytes);
  if (!text.ok()) return text.status();
  return ParseRecipe(*text, path);
}

}  // namespace marcoro
