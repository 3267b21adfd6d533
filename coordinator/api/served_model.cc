#include "coordinator/api/served_model.h"

#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/api/model_files.h"

namespace marcoro {
namespace {

std::string LastPart(const std::string& directory) {
  std::error_code error;
  const std::filesystem::path path =
      std::filesystem::weakly_canonical(std::filesystem::path(directory), error);
  const std::string name =
      path.filename().empty() ? path.parent_path().filename().string() : path.filename().string();
  return name.empty() ? "model" : name;
}

absl::StatusOr<std::unique_ptr<const Tokenizer>> LoadTokenizer(const std::string& directory,
                                                               uint32_t vocabulary_size) {
  std::error_code error;
  if (!std::filesystem::exists(directory + "/tokenizer.model", error)) {
    return std::unique_ptr<const Tokenizer>();
  }
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(directory);
  if (!tokenizer.ok()) return tokenizer.status();
  if (absl::Status status = (*tokenizer)->CheckVocabulary(static_cast<int32_t>(vocabulary_size));
      !status.ok()) {
    return status;
  }
  return std::unique_ptr<const Tokenizer>(*std::move(tokenizer));
}

// The named template, otherwise the one the checkpoint brings; null if there is neither, or no
// tokenizer to use it with.
absl::StatusOr<std::unique_ptr<const ChatTemplate>> ChooseChatTemplate(const std::string& name,
                                                                       const Tokenizer* tokenizer) {
  const bool named = !name.empty();
  if (!named && (tokenizer == nullptr || tokenizer->chat_template().empty())) {
    return std::unique_ptr<const ChatTemplate>();
  }
  absl::StatusOr<ChatTemplate> chat_template =
      named ? ChatTemplate::Named(name) : ChatTemplate::Recognize(tokenizer->chat_template());
  if (!chat_template.ok()) return chat_template.status();
  return std::make_unique<const ChatTemplate>(*std::move(chat_template));
}

}  // namespace

absl::StatusOr<std::unique_ptr<const ServedModel>> LoadServedModel(
    const ServedModelOptions& options) {
  std::error_code error;
  if (!std::filesystem::is_directory(options.directory, error)) {
    return absl::NotFoundError(
        absl::StrCat("model folder ", options.directory, " does not exist or is no folder"));
  }
  absl::StatusOr<ModelConfigFile> config = ReadModelConfig(options.directory);
  if (!config.ok()) return config.status();
  absl::StatusOr<GenerationConfigFile> generation =
      ReadGenerationConfig(options.directory, config->vocabulary_size);
  if (!generation.ok()) return generation.status();
  absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer =
      LoadTokenizer(options.directory, config->vocabulary_size);
  if (!tokenizer.ok()) return tokenizer.status();
  absl::StatusOr<std::unique_ptr<const ChatTemplate>> chat_template =
      ChooseChatTemplate(options.chat_template, tokenizer->get());
  if (!chat_template.ok()) return chat_template.status();

  auto model = std::make_unique<ServedModel>();
  model->name = options.name.empty() ? LastPart(options.directory) : options.name;
  model->checkpoint = options.checkpoint.empty() ? options.directory : options.checkpoint;
  model->architecture = config->architecture;
  model->license = ReadLicense(options.directory);
  model->vocabulary_size = config->vocabulary_size;
  model->max_positions = config->max_positions;
  model->concurrency_cost = options.concurrency_cost;
  model->eos_ids = generation->eos_ids.empty() ? config->eos_ids : generation->eos_ids;
  model->defaults = generation->defaults;
  model->tokenizer = *std::move(tokenizer);
  model->chat_template = *std::move(chat_template);
  return std::unique_ptr<const ServedModel>(std::move(model));
}

}  // namespace marcoro
