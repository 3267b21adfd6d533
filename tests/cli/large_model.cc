#include "tests/cli/large_model.h"

#include <filesystem>
#include <random>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "tests/e2e/process.h"
#include "tests/worker/weights/checkpoint_files.h"
#include "worker/model/config.h"
#include "worker/weights/model_tensors.h"

namespace marcoro {
namespace {

namespace fs = std::filesystem;

constexpr char kConfig[] = R"({"architectures": ["MistralForCausalLM"], "hidden_act": "silu",
  "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4,
  "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 512,
  "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "vocab_size": 4000, "torch_dtype": "bfloat16",
  "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2})";

bool HasFinishedShard(const fs::path& partial) {
  std::error_code error;
  fs::directory_iterator next(partial, error);
  for (; !error && next != fs::directory_iterator(); next.increment(error)) {
    if (next->path().extension() == ".safetensors") return true;
  }
  return false;
}

}  // namespace

void WriteLargeModel(const std::string& folder, unsigned seed) {
  fs::create_directories(folder);
  testing::WriteFile(folder + "/config.json", kConfig);
  const ModelConfig config = ParseModelConfig(kConfig, "config.json").value();
  std::mt19937_64 random(seed);
  testing::StoredTensors tensors;
  for (const ModelTensor& tensor : ModelTensors(config)) {
    int64_t elements = 1;
    for (const int64_t dimension : tensor.shape) elements *= dimension;
    std::string bytes;
    bytes.reserve(static_cast<size_t>(elements) * 2);
    for (int64_t i = 0; i < elements; ++i) {  // ±(0.0078 … 2)
      const uint64_t draw = random();
      bytes.push_back(static_cast<char>(draw));
      bytes.push_back(static_cast<char>(0x3c + (draw >> 8) % 4 + ((draw >> 16) & 0x80)));
    }
    tensors[tensor.name] = {"BF16", tensor.shape, std::move(bytes)};
  }
  testing::WriteTensors(folder + "/model.safetensors", tensors);
}

void ExpectSameFiles(const std::string& folder, const std::string& expected) {
  int files = 0;
  for (const auto& entry : fs::directory_iterator(expected)) {
    const std::string name = entry.path().filename();
    EXPECT_EQ(testing::ReadFile(folder + "/" + name) == testing::ReadFile(entry.path()), true)
        << name;
    ++files;
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(folder), fs::directory_iterator()), files);
}

int SignalInTheMiddle(const std::vector<std::string>& arguments, const std::string& out, int signal,
                      std::string* err) {
  Process process(arguments);
  // Without a pause: what is waited for may last for milliseconds.
  const absl::Time deadline = absl::Now() + absl::Seconds(30) * TimeScale();
  while (!HasFinishedShard(out + ".partial") && !fs::exists(out) && absl::Now() < deadline) {
  }
  process.Signal(signal);
  const int exit_code = process.AwaitExit(absl::Seconds(30)).value_or(-1);
  *err = process.err();
  return exit_code;
}

}  // namespace marcoro
