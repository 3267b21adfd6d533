#include "worker/weights/merge/tensor_plan.h"

#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "worker/weights/load_plan.h"
#include "worker/weights/merge/merge_parameters.h"
#include "worker/weights/model_tensors.h"

namespace marcoro {
namespace {

// A layer of the merged model: the offset-th of a slice.
struct Layer {
  const MergeSlice* slice = nullptr;
  int32_t offset = 0;

  // Where it stands in the slice's gradients. A slice of one layer is its end.
  double place() const {
    return slice->layers > 1 ? static_cast<double>(offset) / (slice->layers - 1) : 1;
  }
};

std::vector<Layer> LayersOf(const std::vector<MergeSlice>& slices) {
  std::vector<Layer> layers;
  for (const MergeSlice& slice : slices) {
    for (int32_t offset = 0; offset < slice.layers; ++offset) layers.push_back({&slice, offset});
  }
  return layers;
}

constexpr std::string_view kLayers = "model.layers.";

// 7 of "model.layers.7.mlp.up_proj.weight".
int32_t LayerOf(const std::string& name) {
  int32_t layer = 0;
  const size_t end = name.find('.', kLayers.size());
  MARCORO_CHECK(absl::SimpleAtoi(name.substr(kLayers.size(), end - kLayers.size()), &layer));
  return layer;
}

// The same tensor in another layer.
std::string InLayer(const std::string& name, int32_t layer) {
  return absl::StrCat(std::string(kLayers), layer, name.substr(name.find('.', kLayers.size())));
}

class TensorPlanner {
 public:
  TensorPlanner(const Recipe& recipe, const MergeMethod& method, const MergeParents& parents)
      : recipe_(recipe), method_(method), parents_(parents) {}

  // A tensor of a slice, whose inputs are called `names`.
  absl::StatusOr<TensorMerge> Plan(const ModelTensor& tensor, const MergeSlice& slice, double place,
                                   const std::vector<std::string>& names) const;

 private:
  absl::StatusOr<MergeParameters> Parameters(const MergeSlice& slice, const RecipeSource* source,
                                             bool per_input, const std::string& tensor,
                                             double place) const;
  absl::Status CheckStored(const ModelTensor& tensor, const SliceInput& input,
                           const std::string& name) const;

  const Recipe& recipe_;
  const MergeMethod& method_;
  const MergeParents& parents_;
};

absl::StatusOr<TensorMerge> TensorPlanner::Plan(const ModelTensor& tensor, const MergeSlice& slice,
                                                double place,
                                                const std::vector<std::string>& names) const {
  TensorMerge merge;
  merge.name = tensor.name;
  merge.base = slice.base;
  auto shared = Parameters(slice, nullptr, /*per_input=*/false, tensor.name, place);
  if (!shared.ok()) return shared.status();
  merge.parameters = *std::move(shared);
  for (size_t i = 0; i < slice.inputs.size(); ++i) {
    const SliceInput& input = slice.inputs[i];
    absl::Status stored = CheckStored(tensor, input, names[i]);
    if (!stored.ok()) return stored;
    MergeInput& planned = merge.inputs.emplace_back();
    planned.model = input.model;
    planned.tensor = names[i];
    // To a method that works on differences from it, a base has no parameters.
    const bool is_base = static_cast<int32_t>(i) == slice.base;
    if (is_base && method_.base() != MergeMethod::Base::kUnused) continue;
    // Filters see an input by its own name; a tied lm_head is an lm_head to them.
    const std::string& name = tensor.role == TensorRole::kEmbedding ? tensor.name : names[i];
    auto own = Parameters(slice, input.source, /*per_input=*/true, name, place);
    if (!own.ok()) return own.status();
    planned.parameters = *std::move(own);
  }
  return merge;
}

absl::StatusOr<MergeParameters> TensorPlanner::Parameters(const MergeSlice& slice,
                                                          const RecipeSource* source,
                                                          bool per_input, const std::string& tensor,
                                                          double place) const {
  ParameterScopes scopes;
  if (source != nullptr) scopes.push_back(&source->parameters);
  scopes.insert(scopes.end(),
                {&slice.recipe->parameters, &recipe_.module_parameters, &recipe_.parameters});
  auto parameters = EvaluateParameters(method_, per_input, scopes, tensor, place);
  if (parameters.ok()) return parameters;
  const SourcePosition position =
      source != nullptr ? source->model.position : recipe_.merge_method.position;
  return ErrorAt(recipe_.file, position, parameters.status().message());
}

absl::Status TensorPlanner::CheckStored(const ModelTensor& tensor, const SliceInput& input,
                                        const std::string& name) const {
  const MergeParent& parent = parents_.at(input.model);
  const auto fail = [&](const std::string& what) {
    const SourcePosition position =
        input.source != nullptr ? input.source->model.position : parent.position;
    return ErrorAt(recipe_.file, position,
                   absl::StrCat(parent.model.directory, ": tensor ", name, " ", what));
  };
  const TensorInfo* stored = parent.tensors->Find(name);
  if (stored == nullptr) return fail("is missing");
  std::vector<int64_t> expected = tensor.shape;
  if (tensor.role == TensorRole::kEmbedding) expected[0] = parent.config.vocabulary_size;
  if (stored->shape != expected) {
    return fail(
        absl::StrCat("is ", FormatShape(stored->shape), ", must be ", FormatShape(expected)));
  }
  if (!IsReadable(*parent.tensors, *stored)) {
    return fail(
        absl::StrCat("is ", stored->dtype, ": BF16, F16, F32 and FP8 with scales can be merged"));
  }
  return absl::OkStatus();
}

// Plans embedding or lm_head. Both of a recipe of one slice share a map.
class TablePlanner {
 public:
  TablePlanner(const TensorPlanner& tensors, const MergeParents& parents,
               const VocabularyPlan& vocabulary, PlannedTensors& planned)
      : tensors_(tensors), parents_(parents), vocabulary_(vocabulary), planned_(planned) {}

  absl::StatusOr<TensorMerge> Plan(const ModelTensor& tensor, const MergeSlice& slice) {
    std::vector<std::string> names;
    for (const SliceInput& input : slice.inputs) {
      const bool tied = parents_.at(input.model).config.tied_embeddings;
      names.push_back(tied ? std::string(kEmbeddingName) : tensor.name);
    }
    absl::StatusOr<TensorMerge> merge = tensors_.Plan(tensor, slice, /*place=*/0, names);
    if (merge.ok()) merge->vocabulary = MapOf(slice);
    return merge;
  }

 private:
  int32_t MapOf(const MergeSlice& slice) {
    if (last_slice_ == &slice) return last_map_;
    last_slice_ = &slice;
    last_map_ = -1;
    std::optional<VocabularyMap> map = vocabulary_.MapOf(slice);
    if (map.has_value()) {
      last_map_ = static_cast<int32_t>(planned_.vocabularies.size());
      planned_.vocabularies.push_back(*std::move(map));
    }
    return last_map_;
  }

  const TensorPlanner& tensors_;
  const MergeParents& parents_;
  const VocabularyPlan& vocabulary_;
  PlannedTensors& planned_;
  const MergeSlice* last_slice_ = nullptr;
  int32_t last_map_ = -1;
};

}  // namespace

absl::StatusOr<PlannedTensors> PlanTensors(const Recipe& recipe, const MergeMethod& method,
                                           const MergeParents& parents,
                                           const std::vector<MergeSlice>& slices,
                                           const VocabularyPlan& vocabulary,
                                           const ModelConfig& config) {
  PlannedTensors planned;
  const TensorPlanner planner(recipe, method, parents);
  TablePlanner tables(planner, parents, vocabulary, planned);
  const std::vector<Layer> layers = LayersOf(slices);
  for (const ModelTensor& tensor : ModelTensors(config)) {
    absl::StatusOr<TensorMerge> merge;
    if (tensor.role == TensorRole::kEmbedding) {
      const bool first = tensor.name == kEmbeddingName;
      merge = tables.Plan(tensor, first ? slices.front() : slices.back());
    } else if (tensor.name == kFinalNormName) {
      const std::vector<std::string> names(slices.back().inputs.size(), tensor.name);
      merge = planner.Plan(tensor, slices.back(), /*place=*/0, names);
    } else {
      const Layer& layer = layers[static_cast<size_t>(LayerOf(tensor.name))];
      std::vector<std::string> names;
      for (const SliceInput& input : layer.slice->inputs) {
        names.push_back(InLayer(tensor.name, input.first_layer + layer.offset));
      }
      merge = planner.Plan(tensor, *layer.slice, layer.place(), names);
    }
    if (!merge.ok()) return merge.status();
    planned.tensors.push_back(*std::move(merge));
  }
  return planned;
}

}  // namespace marcoro
