#include "worker/weights/merge/plan.h"

#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/weights/merge/known_names.h"
#include "worker/weights/merge/merge_method.h"
#include "worker/weights/merge/merge_parameters.h"
#include "worker/weights/merge/merge_parents.h"
#include "worker/weights/merge/merged_config.h"
#include "worker/weights/merge/recipe.h"
#include "worker/weights/merge/recipe_chat_template.h"
#include "worker/weights/merge/slice_plan.h"
#include "worker/weights/merge/tensor_plan.h"
#include "worker/weights/merge/vocabulary_plan.h"

namespace marcoro {
namespace {

absl::StatusOr<const MergeMethod*> MethodOf(const Recipe& recipe) {
  const MergeMethod* method = FindMergeMethod(recipe.merge_method.text);
  if (method != nullptr) return method;
  return ErrorAt(recipe.file, recipe.merge_method.position,
                 absl::StrCat("unknown merge_method ", Quoted(recipe.merge_method.text), " ",
                              KnownNames(recipe.merge_method.text, MergeMethodNames())));
}

// Models whose weights are merged.
std::set<int32_t> MergedModels(const std::vector<MergeSlice>& slices) {
  std::set<int32_t> models;
  for (const MergeSlice& slice : slices) {
    for (const SliceInput& input : slice.inputs) models.insert(input.model);
  }
  return models;
}

// Shapes of layers must agree; what else enters the arithmetic is taken from the main model.
absl::Status CheckConfigs(const Recipe& recipe, const MergeParents& parents,
                          const std::set<int32_t>& models, int32_t main_model,
                          std::vector<std::string>& warnings) {
  const MergeParent& main = parents.at(main_model);
  for (const int32_t model : models) {
    const MergeParent& parent = parents.at(model);
    const ModelConfig& ours = parent.config;
    const ModelConfig& theirs = main.config;
    struct Value {
      const char* key;
      double ours, theirs;
      bool is_shape;
    };
    for (const Value& value : std::vector<Value>{
             {"hidden_size", double(ours.hidden_size), double(theirs.hidden_size), true},
             {"intermediate_size", double(ours.ffn_size), double(theirs.ffn_size), true},
             {"num_attention_heads", double(ours.heads), double(theirs.heads), true},
             {"num_key_value_heads", double(ours.kv_heads), double(theirs.kv_heads), true},
             {"head_dim", double(ours.head_dim), double(theirs.head_dim), true},
             {"rope_theta", ours.rope_theta, theirs.rope_theta, false},
             {"rms_norm_eps", ours.rms_norm_epsilon, theirs.rms_norm_epsilon, false},
             {"sliding_window", double(ours.sliding_window), double(theirs.sliding_window),
              false}}) {
      if (value.ours == value.theirs) continue;
      const std::string difference =
          absl::StrCat(value.key, " of ", parent.model.reference, " is ", value.ours, ", of ",
                       main.model.reference, " ", value.theirs);
      if (value.is_shape) return ErrorAt(recipe.file, parent.position, difference);
      warnings.push_back(
          absl::StrCat(recipe.file, ":", parent.position.line, ": ", difference, " (taken)"));
    }
  }
  return absl::OkStatus();
}

// Whether the merged model has no lm_head, because no model of the last slice has one.
bool AllTied(const MergeSlice& slice, const MergeParents& parents) {
  for (const SliceInput& input : slice.inputs) {
    if (!parents.at(input.model).config.tied_embeddings) return false;
  }
  return true;
}

std::string StoredName(const std::string& dtype) {
  if (dtype.empty()) return "";
  return dtype == "bfloat16" ? "BF16" : dtype == "float16" ? "F16" : "F32";
}

std::vector<std::string> Directories(const MergeParents& parents) {
  std::vector<std::string> directories;
  for (int32_t i = 0; i < parents.size(); ++i) directories.push_back(parents.at(i).model.directory);
  return directories;
}

class MergePlanner {
 public:
  MergePlanner(const Recipe& recipe, const MergeMethod& method, const HubLookup& find_in_hub)
      : recipe_(recipe), method_(method), parents_(recipe.file, find_in_hub) {}

  absl::StatusOr<MergePlan> Plan() {
    absl::Status status = CheckParameterNames(recipe_, method_, plan_.warnings);
    if (status.ok()) status = PlanModels();
    if (status.ok()) status = PlanContents();
    if (!status.ok()) return status;
    plan_.recipe = recipe_.file;
    plan_.method = recipe_.merge_method.text;
    plan_.dtype = StoredName(recipe_.dtype);
    plan_.out_dtype = StoredName(recipe_.out_dtype);
    plan_.seed = recipe_.seed;
    for (int32_t i = 0; i < parents_.size(); ++i) plan_.models.push_back(parents_.at(i).model);
    return std::move(plan_);
  }

 private:
  // Slices, base, and what all their models must agree on.
  absl::Status PlanModels() {
    absl::StatusOr<std::vector<MergeSlice>> slices = PlanSlices(recipe_, method_, parents_);
    if (!slices.ok()) return slices.status();
    slices_ = *std::move(slices);
    if (recipe_.base_model.has_value()) {
      absl::StatusOr<int32_t> base = parents_.Find(*recipe_.base_model);
      if (!base.ok()) return base.status();
      plan_.base_model = *base;
      main_model_ = *base;
    }
    const std::set<int32_t> models = MergedModels(slices_);
    for (const int32_t model : models) {
      absl::Status opened = parents_.OpenTensors(model);
      if (!opened.ok()) return opened;
    }
    return CheckConfigs(recipe_, parents_, models, main_model_, plan_.warnings);
  }

  // Vocabulary, config, tensors, chat template.
  absl::Status PlanContents() {
    absl::StatusOr<VocabularyPlan> vocabulary =
        VocabularyPlan::Make(recipe_, main_model_, slices_, parents_, plan_.warnings);
    if (!vocabulary.ok()) return vocabulary.status();
    plan_.tokenizer_model = vocabulary->tokenizer_model();
    absl::StatusOr<MergedConfig> config = MergeConfigs(
        parents_.at(main_model_).model.directory,
        parents_.at(plan_.tokenizer_model).model.directory, MergedShapeOf(*vocabulary));
    if (!config.ok()) return config.status();
    plan_.config = std::move(config->config);
    plan_.config_json = std::move(config->json);
    absl::StatusOr<PlannedTensors> tensors =
        PlanTensors(recipe_, method_, parents_, slices_, *vocabulary, plan_.config);
    if (!tensors.ok()) return tensors.status();
    plan_.tensors = std::move(tensors->tensors);
    plan_.vocabularies = std::move(tensors->vocabularies);
    absl::StatusOr<std::string> chat_template = RecipeChatTemplate(recipe_, Directories(parents_));
    if (!chat_template.ok()) return chat_template.status();
    plan_.chat_template = *std::move(chat_template);
    return absl::OkStatus();
  }

  MergedShape MergedShapeOf(const VocabularyPlan& vocabulary) const {
    MergedShape shape;
    for (const MergeSlice& slice : slices_) shape.layers += slice.layers;
    shape.vocabulary_size = vocabulary.size();
    shape.tied_embeddings = AllTied(slices_.back(), parents_);
    shape.dtype = recipe_.out_dtype.empty() ? recipe_.dtype : recipe_.out_dtype;
    return shape;
  }

  const Recipe& recipe_;
  const MergeMethod& method_;
  MergeParents parents_;
  std::vector<MergeSlice> slices_;
  int32_t main_model_ = 0;  // the base, or else the first: whose config and tokenizer are taken
  MergePlan plan_;
};

}  // namespace

absl::StatusOr<MergePlan> PlanMerge(const std::string& recipe_path, const HubLookup& find_in_hub) {
  absl::StatusOr<Recipe> recipe = LoadRecipe(recipe_path);
  if (!recipe.ok()) return recipe.status();
  absl::StatusOr<const MergeMethod*> method = MethodOf(*recipe);
  if (!method.ok()) return method.status();
  return MergePlanner(*recipe, **method, find_in_hub).Plan();
}

}  // namespace marcoro
