// Peak resident memory of merging while loading, in a process of its own.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "tests/worker/weights/merge/merge_testing.h"
#include "worker/weights/loader.h"
#include "worker/weights/merge/plan.h"
#include "worker/weights/model_tensors.h"

namespace marcoro {
namespace {

using testing::TempFolder;
using testing::WriteFile;

constexpr char kConfig[] = R"({"architectures": ["MistralForCausalLM"], "model_type": "mistral",
  "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
  "num_key_value_heads": 8, "num_hidden_layers": 3, "vocab_size": 512,
  "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "bos_token_id": 1,
  "eos_token_id": 2, "sliding_window": null, "tie_word_embeddings": false,
  "torch_dtype": "bfloat16"})";
constexpr int64_t kLargestTensor = 4096 * 1024 * 2;  // as stored

// 48 M parameters, 97 MB, in one file. Every number is 0.5 + k/512.
void WriteParent(const std::string& folder, uint32_t seed) {
  std::filesystem::create_directory(folder);
  WriteFile(folder + "/config.json", kConfig);
  std::string header = "{";
  uint64_t end = 0;
  for (const ModelTensor& tensor : ModelTensors(LoadModelConfig(folder).value())) {
    uint64_t bytes = 2;
    for (const int64_t dimension : tensor.shape) bytes *= static_cast<uint64_t>(dimension);
    header += (end == 0 ? "\"" : ",\"") + tensor.name +
              "\":{\"dtype\":\"BF16\",\"shape\":" + FormatShape(tensor.shape) +
              ",\"data_offsets\":[" + std::to_string(end) + "," + std::to_string(end + bytes) +
              "]}";
    end += bytes;
  }
  std::string numbers(end, '\0');
  for (uint64_t i = 0; i < end / 2; ++i) {
    const uint32_t mixed = (static_cast<uint32_t>(i) + seed) * 2654435761u;
    numbers[2 * i] = static_cast<char>(mixed >> 25);
    numbers[2 * i + 1] = '\x3f';
  }
  WriteFile(folder + "/model.safetensors", testing::SafetensorsBytes(header + "}", numbers));
}

int64_t ResidentBytes() {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (line.rfind("VmRSS:", 0) == 0) return std::stoll(line.substr(6)) * 1024;
  }
  return -1;
}

// Loads and checks the peak; the exit code of a process says what went wrong.
int LoadWithin(const std::string& recipe, const Shard& shard) {
  BackendOptions options;
  options.name = "reference";
  options.threads = 2;
  auto backend = CreateBackend(options);
  auto plan = PlanMerge(recipe);
  if (!backend.ok() || !plan.ok()) return 1;
  const ModelConfig config = plan->config;
  auto source = MergeSource::Open(*std::move(plan));
  if (!source.ok()) return 1;
  const int64_t before = ResidentBytes();
  const auto loaded = LoadParameters(**source, config, shard, {}, **backend);
  if (!loaded.ok()) return 2;
  int64_t held = 0;
  for (const Buffer& buffer : loaded->storage) held += static_cast<int64_t>(buffer.bytes());
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const int64_t growth = int64_t{usage.ru_maxrss} * 1024 - before;
  if (growth < held * 9 / 10) return 3;  // not loaded for real
  return growth < held + 2 * kLargestTensor ? 0 : 4;
}

class MergeMemory : public ::testing::TestWithParam<const char*> {};

TEST_P(MergeMemory, PeakIsTheShardPlusLessThanTheParentsOfOneTensor) {
  TempFolder folder;
  WriteParent(folder.File("a"), 1);
  WriteParent(folder.File("b"), 2);
  WriteFile(folder.File("recipe.yml"), GetParam());
  for (const Shard& shard : {Shard{0, 1}, Shard{1, 2}}) {
    const pid_t child = fork();
    if (child == 0) _exit(LoadWithin(folder.File("recipe.yml"), shard));
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(WIFEXITED(status) ? WEXITSTATUS(status) : -1, 0) << "tp " << shard.world_size;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Recipes, MergeMemory,
    ::testing::Values("models: [{model: a}, {model: b}]\nbase_model: a\nmerge_method: slerp\n"
                      "parameters: {t: 0.4}\ndtype: bfloat16\n",
                      "models: [{model: a}, {model: b, parameters: {weight: 1, density: 0.3}}]\n"
                      "base_model: a\nmerge_method: ties\ndtype: bfloat16\n"),
    [](const auto& recipe) { return recipe.index == 0 ? "slerp" : "ties"; });

}  // namespace
}  // namespace marcoro
