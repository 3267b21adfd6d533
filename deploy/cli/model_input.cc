#include "deploy/cli/model_input.h"

#include <spdlog/spdlog.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "deploy/cli/provide_model.h"
#include "worker/model/json_nesting.h"
#include "worker/model/text_file.h"
#include "worker/weights/checkpoint_source.h"
#include "worker/weights/hub_cache.h"
#include "worker/weights/merge/merge_source.h"
#include "worker/weights/merge/plan.h"

namespace marcoro {
namespace {

constexpr size_t kMaxRecipeBytes = 4u << 20;
constexpr size_t kMaxConfigBytes = 4u << 20;
constexpr size_t kMaxFileBytes = 256u << 20;
constexpr const char* kFiles[] = {"tokenizer.model",
                                  "tokenizer.json",
                                  "tokenizer_config.json",
                                  "special_tokens_map.json",
                                  "added_tokens.json",
                                  "chat_template.jinja",
                                  "generation_config.json",
                                  "vocab.json",
                                  "merges.txt",
                                  "LICENSE",
                                  "LICENSE.txt",
                                  "LICENSE.md",
                                  "NOTICE"};

absl::StatusOr<ModelInput> OpenRecipe(const std::string& path) {
  ModelInput input;
  absl::StatusOr<std::string> text = ReadSmallFile(path, kMaxRecipeBytes);
  if (!text.ok()) return text.status();
  absl::StatusOr<MergePlan> plan =
      PlanMerge(path, [](const std::string& name) { return FindInHubCache(name); });
  if (!plan.ok()) return plan.status();
  for (const std::string& warning : plan->warnings) spdlog::warn("{}", warning);
  absl::StatusOr<std::unique_ptr<MergeSource>> source = MergeSource::Open(*plan);
  if (!source.ok()) return source.status();
  input.source = *std::move(source);
  input.config = plan->config;
  input.config_json = plan->config_json;
  input.tokenizer_directory = plan->models[static_cast<size_t>(plan->tokenizer_model)].directory;
  input.chat_template = plan->chat_template;
  input.recipe_text = *std::move(text);
  input.merge = *std::move(plan);
  return input;
}

absl::StatusOr<ModelInput> OpenFolder(const std::string& directory) {
  ModelInput input;
  absl::StatusOr<ModelConfig> config = LoadModelConfig(directory);
  if (!config.ok()) return config.status();
  absl::StatusOr<std::string> config_json =
      ReadSmallFile(absl::StrCat(directory, "/config.json"), kMaxConfigBytes);
  if (!config_json.ok()) return config_json.status();
  absl::StatusOr<std::unique_ptr<CheckpointSource>> source = CheckpointSource::Open(directory);
  if (!source.ok()) return source.status();
  input.source = *std::move(source);
  input.config = *std::move(config);
  input.config_json = *std::move(config_json);
  input.tokenizer_directory = directory;
  return input;
}

// Puts the template where every reader looks: into tokenizer_config.json, and into
// chat_template.jinja if that is there or nothing else is.
absl::Status SetChatTemplate(const std::string& chat_template, const std::string& directory,
                             std::vector<ModelFile>& files) {
  bool has_place = false;
  for (ModelFile& file : files) {
    if (file.name == "chat_template.jinja") {
      file.contents = chat_template;
      has_place = true;
    }
    if (file.name != "tokenizer_config.json") continue;
    absl::Status nesting = CheckJsonNesting(file.contents, absl::StrCat(directory, "/", file.name));
    if (!nesting.ok()) return nesting;
    auto root = nlohmann::ordered_json::parse(file.contents, nullptr, /*allow_exceptions=*/false);
    if (!root.is_object()) {
      return absl::InvalidArgumentError(
          absl::StrCat(directory, "/", file.name, ": not a JSON object"));
    }
    root["chat_template"] = chat_template;
    file.contents =
        root.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
    has_place = true;
  }
  if (!has_place) files.push_back({"chat_template.jinja", chat_template});
  return absl::OkStatus();
}

}  // namespace

bool IsRecipe(const std::string& path) {
  return absl::EndsWith(path, ".yml") || absl::EndsWith(path, ".yaml");
}

absl::StatusOr<ModelInput> OpenModelInput(const std::string& model) {
  absl::StatusOr<ProvidedModel> provided = ProvideModel(model, PullSettings());
  if (!provided.ok()) return provided.status();
  return IsRecipe(provided->path) ? OpenRecipe(provided->path) : OpenFolder(provided->path);
}

absl::StatusOr<std::vector<ModelFile>> ReadModelFiles(const ModelInput& input) {
  std::vector<ModelFile> files;
  for (const char* name : kFiles) {
    absl::StatusOr<std::string> contents =
        ReadSmallFile(absl::StrCat(input.tokenizer_directory, "/", name), kMaxFileBytes);
    if (absl::IsNotFound(contents.status())) continue;
    if (!contents.ok()) return contents.status();
    files.push_back({name, *std::move(contents)});
  }
  if (!input.chat_template.empty()) {
    absl::Status status = SetChatTemplate(input.chat_template, input.tokenizer_directory, files);
    if (!status.ok()) return status;
  }
  return files;
}

}  // namespace marcoro
