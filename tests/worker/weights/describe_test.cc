#include "worker/weights/describe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "tests/worker/weights/checkpoint_files.h"

namespace marcoro {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::ReadFile;
using testing::TempFolder;
using testing::TestData;
using testing::WriteFile;

TEST(Describe, Tiny) {
  const auto tiny = DescribeCheckpoint(TestData("tiny"));
  ASSERT_TRUE(tiny.ok()) << tiny.status();
  EXPECT_EQ(tiny->config.architecture, "MistralForCausalLM");
  EXPECT_EQ(tiny->parameters, 223'552u);
  EXPECT_EQ(tiny->tensors.size(), 21u);
  EXPECT_EQ(tiny->tensors[0].name, "lm_head.weight");
  EXPECT_EQ(tiny->tensors[0].origin, "model.safetensors");
  EXPECT_EQ(tiny->stored_bytes, 447'104u);
  ASSERT_EQ(tiny->dtypes.size(), 1u);
  EXPECT_EQ(tiny->dtypes.at("BF16").tensors, 21u);
  EXPECT_EQ(tiny->dtypes.at("BF16").elements, 223'552u);
  EXPECT_EQ(tiny->dtypes.at("BF16").bytes, 447'104u);
  // Each layer 64·(64+32+32+64) + 3·64·176 = 46,080 linear numbers in 64+32+32+64 + 176+176+64 =
  // 608 rows; two tables of 65,536; five norms of 64.
  EXPECT_EQ(tiny->fp8_bytes, 2u * (46'080 + 608 * 4) + 2 * 65'536 * 2 + 5 * 64 * 4);
  EXPECT_EQ(tiny->bf16_bytes, 2u * 46'080 * 2 + 2 * 65'536 * 2 + 5 * 64 * 4);
  EXPECT_EQ(tiny->kv_bytes_per_token, 2u * 2 * 2 * 16 * 2);
  EXPECT_EQ(tiny->kv_fp8_bytes_per_token, 2u * 2 * 2 * (16 + 4));
  EXPECT_THAT(tiny->tensor_parallel_degrees, ElementsAre(1, 2));
  EXPECT_THAT(tiny->chat_template, HasSubstr("### Instruction:"));
  EXPECT_THAT(tiny->tokenizer_files,
              ElementsAre("tokenizer.model", "tokenizer_config.json", "generation_config.json"));
  EXPECT_TRUE(tiny->servable.ok()) << tiny->servable;
}

TEST(Describe, FilesOfAnIndexAndDegrees) {
  const auto small = DescribeCheckpoint(TestData("small"));
  ASSERT_TRUE(small.ok()) << small.status();
  EXPECT_EQ(small->dtypes.at("F16").tensors, 21u);
  EXPECT_EQ(small->tensors[0].origin, "model-00001-of-00003.safetensors");
  EXPECT_THAT(small->tensor_parallel_degrees, ElementsAre(1, 2, 4, 8));
  EXPECT_THAT(small->chat_template, HasSubstr("<|im_start|>"));
}

TEST(Describe, TiedHeadIsServedFromMemoryOfItsOwn) {
  const auto window = DescribeCheckpoint(TestData("window"));
  ASSERT_TRUE(window.ok()) << window.status();
  EXPECT_EQ(window->stored_bytes, 1'557'120u);
  EXPECT_EQ(window->parameters * 4, window->stored_bytes);
  // Each layer 96·(128+64+64) + 128·96 + 3·96·208 = 96,768; two tables of 98,304; seven norms
  // of 96.
  EXPECT_EQ(window->bf16_bytes, 3u * 96'768 * 2 + 2 * 98'304 * 2 + 7 * 96 * 4);
  EXPECT_THAT(window->chat_template, IsEmpty());
}

class ChangedTiny : public ::testing::Test {
 protected:
  ChangedTiny() {
    for (const char* name : {"config.json", "model.safetensors", "tokenizer_config.json"}) {
      std::filesystem::copy_file(TestData(std::string("tiny/") + name), folder_.File(name));
    }
  }

  TempFolder folder_;
};

TEST_F(ChangedTiny, AFalseClaimOfQuantizationIsDescribedButNotServable) {
  std::string config = ReadFile(folder_.File("config.json"));
  config.insert(1, R"("quantization_config": {"quant_method": "fp8"},)");
  WriteFile(folder_.File("config.json"), config);
  const auto description = DescribeCheckpoint(folder_.path());
  ASSERT_TRUE(description.ok()) << description.status();
  EXPECT_THAT(description->quantization, HasSubstr("fp8"));
  EXPECT_EQ(description->servable.code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ChangedTiny, MissingTensorIsDescribedButNotServable) {
  auto tensors = testing::ReadTensors(folder_.path());
  tensors.erase("model.norm.weight");
  testing::WriteTensors(folder_.File("model.safetensors"), tensors);
  const auto description = DescribeCheckpoint(folder_.path());
  ASSERT_TRUE(description.ok()) << description.status();
  EXPECT_THAT(std::string(description->servable.message()), HasSubstr("model.norm.weight"));
}

TEST_F(ChangedTiny, DefaultOfSeveralTemplatesIsTaken) {
  WriteFile(folder_.File("tokenizer_config.json"),
            R"({"chat_template": [{"name": "tool_use", "template": "T"},
                                  {"name": "default", "template": "D"}]})");
  EXPECT_EQ(DescribeCheckpoint(folder_.path())->chat_template, "D");
}

TEST_F(ChangedTiny, TemplateFileWins) {
  WriteFile(folder_.File("chat_template.jinja"), "from the file");
  EXPECT_EQ(DescribeCheckpoint(folder_.path())->chat_template, "from the file");
}

TEST_F(ChangedTiny, OddTemplatesAreNoTemplates) {
  for (const char* text : {"{}", R"({"chat_template": 7})", R"({"chat_template": [1, {}]})"}) {
    WriteFile(folder_.File("tokenizer_config.json"), text);
    EXPECT_EQ(DescribeCheckpoint(folder_.path())->chat_template, "") << text;
  }
}

TEST_F(ChangedTiny, BrokenFilesAreErrorsThatNameThem) {
  WriteFile(folder_.File("tokenizer_config.json"), "{");
  EXPECT_THAT(std::string(DescribeCheckpoint(folder_.path()).status().message()),
              HasSubstr("tokenizer_config.json"));
  WriteFile(folder_.File("model.safetensors"), "short");
  EXPECT_THAT(std::string(DescribeCheckpoint(folder_.path()).status().message()),
              HasSubstr("model.safetensors"));
  std::filesystem::remove(folder_.File("config.json"));
  EXPECT_EQ(DescribeCheckpoint(folder_.path()).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace marcoro
