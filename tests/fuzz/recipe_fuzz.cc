// Input: a merge recipe.
#include "absl/strings/match.h"
#include "tests/fuzz/input.h"
#include "worker/weights/merge/recipe.h"

namespace marcoro {

void FuzzOne(absl::string_view input) {
  const auto recipe = ParseRecipe(std::string(input), "recipe.yml");
  if (!recipe.ok()) {
    MARCORO_CHECK(absl::StartsWith(recipe.status().message(), "recipe.yml"));
    return;
  }
  MARCORO_CHECK(!recipe->merge_method.text.empty());
  MARCORO_CHECK(!recipe->slices.empty() && recipe->slices.size() <= kMaxRecipeSlices);
  for (const RecipeSlice& slice : recipe->slices) {
    MARCORO_CHECK(!slice.sources.empty() && slice.sources.size() <= kMaxSliceSources);
    for (const RecipeSource& source : slice.sources) {
      MARCORO_CHECK(source.all_layers ||
                    (source.first_layer >= 0 && source.first_layer <= source.end_layer));
    }
  }
}

}  // namespace marcoro
