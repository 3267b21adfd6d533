// Loading a recipe gives every rank what loading its written merge gives it, bit for bit.
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <ostream>
#include <string>
#include <tuple>
#include <vector>

#include "tests/worker/weights/merge/merge_testing.h"
#include "worker/weights/checkpoint_source.h"
#include "worker/weights/loader.h"
#include "worker/weights/merge/plan.h"

namespace marcoro {
namespace {

using testing::ReadFile;
using testing::StoredTensors;
using testing::TempFolder;
using testing::TestData;
using testing::WriteFile;

// Bytes of everything a rank has loaded.
std::vector<std::string> Loaded(TensorSource& source, const ModelConfig& config, const Shard& shard,
                                DType linear, int threads) {
  BackendOptions options;
  options.threads = threads;
  auto backend = CreateBackend(options);
  LoadOptions load;
  load.linear_dtype = linear;
  auto parameters = LoadParameters(source, config, shard, load, **backend);
  EXPECT_TRUE(parameters.ok()) << parameters.status();
  std::vector<std::string> bytes;
  if (!parameters.ok()) return bytes;
  for (const Buffer& buffer : parameters->storage) {
    bytes.emplace_back(static_cast<const char*>(buffer.data()), buffer.bytes());
  }
  const auto add = [&bytes](const std::vector<float>& norm) {
    bytes.emplace_back(reinterpret_cast<const char*>(norm.data()), norm.size() * sizeof(float));
  };
  for (const LayerParameters& layer : parameters->layers) {
    add(layer.attention_norm);
    add(layer.ffn_norm);
  }
  add(parameters->final_norm);
  return bytes;
}

// Three parents of the small checkpoint's shape, which up to 8 ranks can share: itself and two that
// are shaken.
class RecipeOfSmallModels : public ::testing::TestWithParam<std::string> {
 protected:
  RecipeOfSmallModels() {
    WriteParent("base", 0);
    WriteParent("a", 1);
    WriteParent("b", 2);
  }

  void WriteParent(const std::string& name, uint64_t seed) {
    std::filesystem::create_directory(folder_.File(name));
    WriteFile(folder_.File(name) + "/config.json", ReadFile(TestData("small/config.json")));
    StoredTensors tensors = testing::ReadTensors(TestData("small"));
    for (auto& [tensor_name, tensor] : tensors) {
      std::vector<float> numbers = tensor.Floats();
      const std::vector<float> noise =
          testing::RandomNumbers(static_cast<int64_t>(numbers.size()), seed, seed == 0 ? 0 : 0.02);
      for (size_t i = 0; i < numbers.size(); ++i) numbers[i] += noise[i];
      tensor = testing::Store("BF16", tensor.shape, numbers);
    }
    testing::WriteTensors(folder_.File(name) + "/model.safetensors", tensors);
  }

  std::string WriteRecipe(const std::string& method) {
    std::string text = "merge_method: " + method + "\ndtype: bfloat16\n";
    if (method == "passthrough") {
      text +=
          "slices:\n- sources: [{model: a, layer_range: [0, 1]}]\n"
          "- sources: [{model: b, layer_range: [0, 2]}]\n";
    } else if (method == "slerp") {
      text +=
          "base_model: a\nmodels: [{model: a}, {model: b}]\n"
          "parameters: {t: [{filter: mlp, value: [0.3, 1]}, {value: 0.6}]}\n";
    } else {
      text +=
          "models:\n- {model: a, parameters: {weight: 0.7, density: 0.5}}\n"
          "- {model: b, parameters: {weight: 0.4, density: 0.8}}\n";
      if (method != "linear") text += "base_model: base\n";
    }
    if (method == "linear") {  // which knows no density
      size_t at = 0;
      while ((at = text.find(", density: 0.")) != std::string::npos) text.erase(at, 14);
    }
    WriteFile(folder_.File("recipe.yml"), text);
    return folder_.File("recipe.yml");
  }

  TempFolder folder_;
};

INSTANTIATE_TEST_SUITE_P(Methods, RecipeOfSmallModels,
                         ::testing::Values("slerp", "linear", "task_arithmetic", "ties",
                                           "dare_linear", "dare_ties", "passthrough"),
                         [](const auto& method) { return method.param; });

// Compares what the ranks of each degree load of the recipe with what they load of its written
// merge.
void ExpectLoadedAsWritten(const MergePlan& plan, const std::vector<int>& world_sizes) {
  // Written by the tests' own code.
  const TempFolder folder;
  testing::WriteTensors(folder.File("model.safetensors"),
                        testing::WrittenMerge(**MergeSource::Open(plan)));
  WriteFile(folder.File("config.json"), plan.config_json);
  const ModelConfig config = LoadModelConfig(folder.path()).value();
  auto written = CheckpointSource::Open(folder.path()).value();

  for (const DType linear : {DType::kF8E4M3, DType::kBF16}) {
    for (const int world_size : world_sizes) {
      for (const int rank : {0, world_size - 1}) {
        const Shard shard{rank, world_size};
        // A source of its own for each rank, as in processes of their own.
        auto source = MergeSource::Open(plan).value();
        EXPECT_EQ(Loaded(*source, plan.config, shard, linear, 1 + rank % 2),
                  Loaded(*written, config, shard, linear, 2))
            << "rank " << rank << " of " << world_size;
      }
    }
  }
}

TEST_P(RecipeOfSmallModels, IsServedAsItsWrittenMerge) {
  ExpectLoadedAsWritten(PlanMerge(WriteRecipe(GetParam())).value(), {1, 2, 4});
}

class RecipeOfFp8Models : public ::testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Recipes, RecipeOfFp8Models,
                         ::testing::Values("slerp_of_formats", "linear_of_all",
                                           "passthrough_stack"),
                         [](const auto& recipe) { return std::string(recipe.param); });

TEST_P(RecipeOfFp8Models, IsServedAsItsWrittenMerge) {
  const std::string recipe = TestData(std::string("quantized/recipes/") + GetParam() + ".yml");
  ExpectLoadedAsWritten(PlanMerge(recipe).value(), {1, 2});
}

}  // namespace
}  // namespace marcoro
