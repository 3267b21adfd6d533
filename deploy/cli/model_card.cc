#include "deploy/cli/model_card.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace marcoro {
namespace {

// A text as YAML takes it whatever is in it: JSON's strings are YAML's.
std::string Quoted(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// The recipe between fences that are longer than any in it.
std::string Fenced(const std::string& text) {
  std::string fence = "```";
  while (text.find(fence) != std::string::npos) fence += '`';
  return absl::StrCat(fence, "yaml\n", absl::StripSuffix(text, "\n"), "\n", fence, "\n");
}

}  // namespace

std::string ModelCard(const MergePlan& plan, const std::string& recipe_text,
                      const std::string& directory) {
  std::filesystem::path path(directory);
  if (path.filename().empty()) path = path.parent_path();
  std::string card = "---\nlibrary_name: transformers\ntags:\n- merge\nbase_model:\n";
  for (const MergeModel& model : plan.models) {
    absl::StrAppend(&card, "- ", Quoted(model.reference), "\n");
  }
  absl::StrAppend(&card, "---\n# ", path.filename().string(), "\n\n",
                  "A merge of language models, written by Marcoro.\n\n", "Method: `", plan.method,
                  "`");
  if (plan.base_model >= 0) {
    absl::StrAppend(&card, ", base: `", plan.models[static_cast<size_t>(plan.base_model)].reference,
                    "`");
  }
  absl::StrAppend(&card, "\n\nMade of:\n\n");
  for (const MergeModel& model : plan.models) {
    absl::StrAppend(&card, "- `", model.reference, "`\n");
  }
  absl::StrAppend(&card, "\nThe recipe:\n\n", Fenced(recipe_text));
  return card;
}

}  // namespace marcoro
