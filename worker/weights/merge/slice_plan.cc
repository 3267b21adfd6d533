#include "worker/weights/merge/slice_plan.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

namespace marcoro {
namespace {

class SlicePlanner {
 public:
  SlicePlanner(const Recipe& recipe, const MergeMethod& method, MergeParents& parents)
      : recipe_(recipe), method_(method), parents_(parents) {}

  absl::StatusOr<MergeSlice> Plan(const RecipeSlice& slice);

 private:
  absl::StatusOr<SliceInput> Input(const RecipeSource& source, int32_t* layers);
  absl::Status AddInputs(const RecipeSlice& from, MergeSlice& slice);
  absl::Status AddBase(const RecipeSlice& from, MergeSlice& slice);
  absl::Status CheckInputs(const MergeSlice& slice) const;

  absl::Status Error(SourcePosition position, absl::string_view what) const {
    return ErrorAt(recipe_.file, position, what);
  }

  const Recipe& recipe_;
  const MergeMethod& method_;
  MergeParents& parents_;
};

absl::StatusOr<MergeSlice> SlicePlanner::Plan(const RecipeSlice& from) {
  MergeSlice slice{.recipe = &from, .inputs = {}, .base = -1, .layers = 0};
  absl::Status status = AddInputs(from, slice);
  if (status.ok()) status = AddBase(from, slice);
  if (status.ok()) status = CheckInputs(slice);
  if (!status.ok()) return status;
  return slice;
}

absl::StatusOr<SliceInput> SlicePlanner::Input(const RecipeSource& source, int32_t* layers) {
  absl::StatusOr<int32_t> model = parents_.Find(source.model);
  if (!model.ok()) return model.status();
  const int32_t available = parents_.at(*model).config.layers;
  const int32_t end = source.all_layers ? available : source.end_layer;
  if (end > available) {
    return Error(source.range_position,
                 absl::StrCat("layer_range [", source.first_layer, ", ", end, "] goes beyond the ",
                              available, " layers of ", source.model.text));
  }
  *layers = end - source.first_layer;
  return SliceInput{.model = *model, .first_layer = source.first_layer, .source = &source};
}

absl::Status SlicePlanner::AddInputs(const RecipeSlice& from, MergeSlice& slice) {
  for (const RecipeSource& source : from.sources) {
    int32_t layers = 0;
    absl::StatusOr<SliceInput> input = Input(source, &layers);
    if (!input.ok()) return input.status();
    if (slice.inputs.empty()) slice.layers = layers;
    if (layers != slice.layers) {
      return Error(source.range_position,
                   absl::StrCat(source.model.text, " gives ", layers, " layers, ",
                                from.sources[0].model.text, " gives ", slice.layers,
                                ": all sources of a slice must give as many"));
    }
    for (const SliceInput& other : slice.inputs) {
      if (other.model != input->model) continue;
      return Error(source.model.position,
                   absl::StrCat("model ", Quoted(source.model.text), " is in this slice twice"));
    }
    slice.inputs.push_back(*input);
  }
  return absl::OkStatus();
}

absl::Status SlicePlanner::AddBase(const RecipeSlice& from, MergeSlice& slice) {
  const std::optional<RecipeText>& name =
      from.base_model.has_value() ? from.base_model : recipe_.base_model;
  if (!name.has_value()) return absl::OkStatus();
  absl::StatusOr<int32_t> model = parents_.Find(*name);
  if (!model.ok()) return model.status();
  for (size_t i = 0; i < slice.inputs.size(); ++i) {
    if (slice.inputs[i].model == *model) slice.base = static_cast<int32_t>(i);
  }
  if (slice.base >= 0) return absl::OkStatus();
  if (!from.sources[0].all_layers) {
    // Which of its layers it would give is not said.
    if (method_.base() == MergeMethod::Base::kUnused) return absl::OkStatus();
    return Error(from.position, absl::StrCat("the base ", Quoted(name->text),
                                             " is not among the sources of this slice"));
  }
  if (parents_.at(*model).config.layers != slice.layers) {
    return Error(name->position, absl::StrCat("the base ", Quoted(name->text), " has ",
                                              parents_.at(*model).config.layers,
                                              " layers, the models have ", slice.layers));
  }
  slice.base = static_cast<int32_t>(slice.inputs.size());
  slice.inputs.push_back({.model = *model, .first_layer = 0, .source = nullptr});
  return absl::OkStatus();
}

absl::Status SlicePlanner::CheckInputs(const MergeSlice& slice) const {
  const std::string method(method_.name());
  if (slice.base < 0 && method_.base() == MergeMethod::Base::kRequired) {
    return Error(recipe_.merge_method.position, absl::StrCat(method, " needs a base_model"));
  }
  const int32_t count = static_cast<int32_t>(slice.inputs.size());
  const bool too_few = count < method_.min_inputs();
  if (!too_few && count <= method_.max_inputs()) return absl::OkStatus();
  const int32_t limit = too_few ? method_.min_inputs() : method_.max_inputs();
  const std::string expected = method_.min_inputs() == method_.max_inputs() ? "exactly"
                               : too_few                                    ? "at least"
                                                                            : "at most";
  return Error(
      slice.recipe->position,
      absl::StrCat(method, " merges ", expected, " ", limit, limit == 1 ? " model" : " models",
                   ", here are ", count, " (a base_model counts)"));
}

}  // namespace

absl::StatusOr<std::vector<MergeSlice>> PlanSlices(const Recipe& recipe, const MergeMethod& method,
                                                   MergeParents& parents) {
  SlicePlanner planner(recipe, method, parents);
  std::vector<MergeSlice> slices;
  int32_t layers = 0;
  for (const RecipeSlice& from : recipe.slices) {
    absl::StatusOr<MergeSlice> slice = planner.Plan(from);
    if (!slice.ok()) return slice.status();
    layers += slice->layers;
    if (layers > kMaxMergedLayers) {
      return ErrorAt(recipe.file, from.position,
                     absl::StrCat("more than ", kMaxMergedLayers, " layers in all"));
    }
    slices.push_back(*std::move(slice));
  }
  return slices;
}

}  // namespace marcoro
