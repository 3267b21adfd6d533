// A merge recipe as it is written: mergekit's YAML, with the place of everything that can be wrong.
// Nothing is looked up here: neither models nor methods.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/weights/merge/source_text.h"

namespace marcoro {

inline constexpr size_t kMaxRecipeBytes = 512 << 10;
inline constexpr size_t kMaxRecipeSlices = 1024;
inline constexpr size_t kMaxSliceSources = 32;
inline constexpr int32_t kMaxMergedLayers = 1024;

// A word of the recipe and where it stands.
struct RecipeText {
  std::string text;
  SourcePosition position;
};

// A value for the tensors whose name contains `filter` ("" and "*": for all).
struct ParameterCase {
  std::string filter;
  std::vector<double> values;  // one, or a gradient over the layers of a slice
  bool discrete = false;       // a gradient of true and false: no values between them
};

struct ParameterSetting {
  std::string name;
  SourcePosition position;
  std::vector<ParameterCase> cases;  // the first that matches counts
};

using ParameterSettings = std::vector<ParameterSetting>;

struct RecipeSource {
  RecipeText model;
  bool all_layers = false;  // of `models`; otherwise layers [first_layer, end_layer)
  int32_t first_layer = 0;
  int32_t end_layer = 0;
  SourcePosition range_position;
  ParameterSettings parameters;
};

struct RecipeSlice {
  SourcePosition position;
  std::vector<RecipeSource> sources;
  std::optional<RecipeText> base_model;
  ParameterSettings parameters;
};

struct Recipe {
  std::string file;
  RecipeText merge_method;
  std::optional<RecipeText> base_model;
  // `models` is one slice of all layers; the base belongs to it, listed or not.
  std::vector<RecipeSlice> slices;
  ParameterSettings module_parameters;
  ParameterSettings parameters;
  std::string dtype;      // as PyTorch calls it: "bfloat16", …; empty: not given
  std::string out_dtype;  // the same
  std::optional<RecipeText> tokenizer_source;  // "base", "union" or a model
  std::optional<RecipeText> chat_template;
  uint64_t seed = 0;  // a key of our own; mergekit has it on its command line
};

// INVALID_ARGUMENT naming file, line and column for anything that is no recipe: bad YAML, unknown
// keys, values of the wrong kind, more than the limits above.
absl::StatusOr<Recipe> ParseRecipe(const std::string& text, const std::string& file);

// Reads the file. NOT_FOUND if there is none.
absl::StatusOr<Recipe> LoadRecipe(const std::string& path);

}  // namespace marcoro
