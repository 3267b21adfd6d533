// The real `marcoro inspect` on whole and on broken checkpoints.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/e2e/process.h"

namespace marcoro {
namespace {

namespace fs = std::filesystem;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using Json = nlohmann::json;

std::string Model(const std::string& name) { return std::string(MARCORO_TEST_DATA) + "/" + name; }

Finished Inspect(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {Program("marcoro"), "inspect"});
  return RunToEnd(std::move(arguments));
}

Json InspectJson(const std::string& model, bool tensors = false) {
  const Finished run = Inspect({"--json", tensors ? "--tensors" : "--no-tensors", model});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  return Json::parse(run.out, nullptr, /*allow_exceptions=*/false);
}

// Shapes, types and templates as tests/data/README.md states them.
TEST(InspectTest, TinyIsAlpacaInBf16AndAllowsTwoRanks) {
  const Json tiny = InspectJson(Model("tiny"));
  EXPECT_EQ(tiny["architecture"], "MistralForCausalLM");
  EXPECT_EQ(tiny["config"]["hidden_size"], 64);
  EXPECT_EQ(tiny["config"]["heads"], 4);
  EXPECT_EQ(tiny["config"]["kv_heads"], 2);
  EXPECT_EQ(tiny["config"]["head_dim"], 16);
  EXPECT_EQ(tiny["config"]["ffn_size"], 176);
  EXPECT_EQ(tiny["chat_template"], "alpaca");
  EXPECT_EQ(tiny["tensor_parallel_degrees"], Json({1, 2}));
  EXPECT_EQ(tiny["dtypes"].size(), 1u);
  // 2 (embedding, head) * 1024 * 64 + 2 layers * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 176 + 128) +
  // 64
  EXPECT_EQ(tiny["parameters"], 223552);
  EXPECT_EQ(tiny["dtypes"]["BF16"]["bytes"], 2 * 223552);
  EXPECT_EQ(tiny["kv_bytes_per_token"], 2 * 2 * 2 * 16 * 2);  // K and V, layers, heads, D, BF16
  EXPECT_EQ(tiny["kv_fp8_bytes_per_token"], 2 * 2 * 2 * (16 + 4));  // a code each, a scale
  EXPECT_EQ(tiny["servable"], true);
  EXPECT_THAT(tiny["tokenizer_files"].dump(), HasSubstr("tokenizer.model"));
}

TEST(InspectTest, SmallIsChatMlInFp16InThreeFilesAndAllowsEightRanks) {
  const Json small = InspectJson(Model("small"), /*tensors=*/true);
  EXPECT_EQ(small["chat_template"], "chatml");
  EXPECT_EQ(small["tensor_parallel_degrees"], Json({1, 2, 4, 8}));
  EXPECT_TRUE(small["dtypes"].contains("F16"));
  EXPECT_EQ(small["tensors"].size(), 21u);  // 2 layers * 9, embedding, head and norm
  EXPECT_EQ(small["tensors"][0]["name"], "lm_head.weight");
  EXPECT_EQ(small["tensors"][0]["shape"], Json({1024, 256}));
  EXPECT_EQ(small["tensors"][0]["bytes"], 1024 * 256 * 2);
  EXPECT_THAT(small["tensors"][0]["file"].get<std::string>(), HasSubstr("-of-00003.safetensors"));
}

TEST(InspectTest, WindowHasAWindowTiedEmbeddingsAndNoTemplate) {
  const Json window = InspectJson(Model("window"));
  EXPECT_EQ(window["config"]["sliding_window"], 16);
  EXPECT_EQ(window["config"]["head_dim"], 32);
  EXPECT_EQ(window["config"]["rms_norm_epsilon"], 1e-6);
  EXPECT_EQ(window["config"]["tied_embeddings"], true);
  EXPECT_EQ(window["chat_template"], "none");
}

TEST(InspectTest, ARanksMemoryIsAShardOfTheLayersAndAWholeEmbedding) {
  const Json tiny = InspectJson(Model("tiny"));
  const double embedding = 1024 * 64 * 2, head = 1024 * 64 * 2, norms = 5 * 64 * 4;
  const double linear = 2 * (64 * 192 + 3 * 64 * 176);
  const double scales = 2 * (64 + 32 + 32 + 64 + 176 + 176 + 64) * 4;
  const auto& at_two = tiny["rank_weight_bytes"][1];
  EXPECT_EQ(at_two["tensor_parallel"], 2);
  EXPECT_EQ(at_two["fp8"], embedding + norms + (head + linear + scales) / 2);
  EXPECT_EQ(at_two["bf16"], embedding + norms + (head + 2 * linear) / 2);
}

TEST(InspectTest, TheTableSaysTheSame) {
  const Finished run = Inspect({"--tensors", Model("tiny")});
  EXPECT_EQ(run.exit_code, 0);
  EXPECT_THAT(run.out, HasSubstr("MistralForCausalLM"));
  EXPECT_THAT(run.out, HasSubstr("223552"));
  EXPECT_THAT(run.out, HasSubstr("alpaca"));
  EXPECT_THAT(run.out, HasSubstr("model.layers.1.mlp.down_proj.weight"));
  EXPECT_EQ(run.err, "");
  // 160 bytes a token in FP8, 256 in BF16.
  EXPECT_THAT(run.out, ContainsRegex("KV cache of all ranks +fp8 +bf16\n"
                                     "  a token +160 B +256 B\n"
                                     "  tokens in a GiB +6710886 +4194304\n"));
}

// A copy of `tiny` to be spoilt; removed at the end.
class BrokenCheckpointTest : public testing::Test {
 protected:
  BrokenCheckpointTest() {
    std::string path = ::testing::TempDir() + "/marcoro_inspect_XXXXXX";
    folder_ = mkdtemp(path.data());
    for (const char* name : {"config.json", "model.safetensors", "tokenizer_config.json"}) {
      fs::copy(Model("tiny") + "/" + name, folder_ / name);
    }
  }
  ~BrokenCheckpointTest() override { fs::remove_all(folder_); }

  std::string Read(const char* name) const {
    std::stringstream text;
    text << std::ifstream(folder_ / name, std::ios::binary).rdbuf();
    return text.str();
  }
  void Write(const char* name, const std::string& text) const {
    std::ofstream(folder_ / name, std::ios::binary) << text;
  }
  // One line that names the file, and exit code 1.
  void ExpectErrorNaming(const std::string& file) const {
    const Finished run = Inspect({folder_});
    EXPECT_EQ(run.exit_code, 1);
    EXPECT_EQ(run.out, "");
    EXPECT_EQ(run.err.rfind("marcoro inspect: ", 0), 0u) << run.err;
    EXPECT_THAT(run.err, HasSubstr(file));
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
  }

  fs::path folder_;
};

TEST_F(BrokenCheckpointTest, AMissingConfigIsNamed) {
  fs::remove(folder_ / "config.json");
  ExpectErrorNaming("config.json");
}

TEST_F(BrokenCheckpointTest, AConfigThatIsNoJsonIsNamed) {
  Write("config.json", "{\"hidden_size\": ");
  ExpectErrorNaming("config.json");
}

TEST_F(BrokenCheckpointTest, MissingWeightsAreNamed) {
  fs::remove(folder_ / "model.safetensors");
  ExpectErrorNaming("safetensors");
}

TEST_F(BrokenCheckpointTest, ATruncatedFileIsNamed) {
  fs::resize_file(folder_ / "model.safetensors", 10000);
  ExpectErrorNaming("model.safetensors");
}

TEST_F(BrokenCheckpointTest, AHeaderThatLiesAboutItsLengthIsNamed) {
  std::string file = Read("model.safetensors");
  file.replace(0, 8, std::string("\xff\xff\xff\xff\xff\xff\xff\x7f", 8));
  Write("model.safetensors", file);
  ExpectErrorNaming("model.safetensors");
}

TEST_F(BrokenCheckpointTest, ATokenizerConfigThatIsNoJsonIsNamed) {
  Write("tokenizer_config.json", "[");
  ExpectErrorNaming("tokenizer_config.json");
}

TEST_F(BrokenCheckpointTest, AMissingTensorMakesItUnservableButNotUnreadable) {
  std::string file = Read("model.safetensors");
  const std::string name = "model.norm.weight";
  file.replace(file.find(name), name.size(), "model.norn.weight");
  Write("model.safetensors", file);
  const Json description = InspectJson(folder_);
  EXPECT_EQ(description["servable"], false);
  EXPECT_THAT(description["problem"].get<std::string>(), HasSubstr("model.norm.weight"));
}

TEST_F(BrokenCheckpointTest, AnUnknownTemplateIsToldWithTheFlagThatNamesOne) {
  Write("tokenizer_config.json", R"({"chat_template": "{{ something unknown }}"})");
  EXPECT_THAT(InspectJson(folder_)["chat_template"].get<std::string>(),
              HasSubstr("--chat-template"));
}

}  // namespace
}  // namespace marcoro
