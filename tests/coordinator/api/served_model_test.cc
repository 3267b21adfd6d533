// What the coordinator reads of a checkpoint, and why it refuses one.
#include "coordinator/api/served_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace marcoro {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kConfig[] =
    R"({"architectures": ["MistralForCausalLM"], "vocab_size": 1024,
        "max_position_embeddings": 512, "eos_token_id": 2})";

class ServedModelTest : public testing::Test {
 protected:
  void SetUp() override {
    const testing::TestInfo* test = testing::UnitTest::GetInstance()->current_test_info();
    directory_ = std::filesystem::path(testing::TempDir()) / "marcoro_served_model" / test->name();
    std::filesystem::remove_all(directory_);
    std::filesystem::create_directories(directory_);
    Write("config.json", kConfig);
  }

  void Write(const std::string& name, const std::string& text) {
    std::ofstream(directory_ / name, std::ios::binary) << text;
  }
  void CopyFromTiny(const std::string& name) {
    std::filesystem::copy_file(std::string(MARCORO_TEST_DATA) + "/tiny/" + name, directory_ / name);
  }

  absl::StatusOr<std::unique_ptr<const ServedModel>> Load(const std::string& chat_template = "") {
    ServedModelOptions options;
    options.directory = directory_.string();
    options.chat_template = chat_template;
    return LoadServedModel(options);
  }
  std::string Error(const std::string& chat_template = "") {
    const auto model = Load(chat_template);
    return model.ok() ? "no error" : std::string(model.status().message());
  }

  std::filesystem::path directory_;
};

TEST_F(ServedModelTest, TheCheckpointIsTheFolderOrWhatItIsSaidToBe) {
  EXPECT_EQ((*Load())->checkpoint, directory_.string());
  ServedModelOptions options;
  options.directory = directory_.string();
  options.checkpoint = "recipes/merge.yml";
  const auto model = LoadServedModel(options);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->checkpoint, "recipes/merge.yml");
}

TEST_F(ServedModelTest, AConfigurationAloneIsEnoughForTokenIds) {
  const auto model = Load();
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->name, "AConfigurationAloneIsEnoughForTokenIds");
  EXPECT_EQ((*model)->vocabulary_size, 1024u);
  EXPECT_EQ((*model)->max_positions, 512u);
  EXPECT_THAT((*model)->eos_ids, ElementsAre(2));
  EXPECT_EQ((*model)->tokenizer, nullptr);
  EXPECT_EQ((*model)->chat_template, nullptr);
  EXPECT_FALSE((*model)->defaults.temperature.has_value());
}

TEST_F(ServedModelTest, GenerationConfigSpeaksForItself) {
  Write("generation_config.json",
        R"({"eos_token_id": [2, 13], "temperature": 0.5, "top_k": 40, "top_p": 0.9,
            "repetition_penalty": 1.25, "max_new_tokens": 3, "top_h": null, "min_p": null})");
  const auto model = Load();
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_THAT((*model)->eos_ids, ElementsAre(2, 13));
  EXPECT_EQ((*model)->defaults.temperature, 0.5f);
  EXPECT_EQ((*model)->defaults.top_k, 40u);
  EXPECT_EQ((*model)->defaults.top_p, 0.9f);
  EXPECT_EQ((*model)->defaults.repetition_penalty, 1.25f);
  EXPECT_FALSE((*model)->defaults.min_p.has_value());
}

TEST_F(ServedModelTest, DoSampleFalseIsGreedy) {
  Write("generation_config.json", R"({"do_sample": false, "temperature": 0.5})");
  const auto model = Load();
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->defaults.temperature, 0.0f);
}

TEST_F(ServedModelTest, TheLicenseComesFromTheModelCard) {
  Write("README.md", "---\nlanguage: en\nlicense: apache-2.0\ntags:\n- merge\n---\n# Card\n");
  EXPECT_EQ((*Load())->license, "apache-2.0");
  Write("README.md", "# Card\nlicense: none of ours\n");
  EXPECT_EQ((*Load())->license, "");
}

TEST_F(ServedModelTest, AMissingFolderIsNamed) {
  directory_ /= "nowhere";
  EXPECT_THAT(Error(), AllOf(HasSubstr("nowhere"), HasSubstr("does not exist")));
}

TEST_F(ServedModelTest, AMissingConfigurationIsNamed) {
  std::filesystem::remove(directory_ / "config.json");
  EXPECT_THAT(Error(), HasSubstr("config.json"));
}

TEST_F(ServedModelTest, AConfigurationThatMakesNoSenseIsRefusedByField) {
  const std::pair<const char*, const char*> cases[] = {
      {"not json", "not a JSON object"},
      {"[]", "not a JSON object"},
      {R"({"max_position_embeddings": 1, "architectures": ["M"]})", "vocab_size"},
      {R"({"vocab_size": 0, "max_position_embeddings": 1, "architectures": ["M"]})", "vocab_size"},
      {R"({"vocab_size": -5, "max_position_embeddings": 1, "architectures": ["M"]})", "vocab_size"},
      {R"({"vocab_size": 1e99, "max_position_embeddings": 1, "architectures": ["M"]})",
       "vocab_size"},
      {R"({"vocab_size": 9, "max_position_embeddings": "x", "architectures": ["M"]})",
       "max_position_embeddings"},
      {R"({"vocab_size": 9, "max_position_embeddings": 1, "architectures": []})", "architectures"},
      {R"({"vocab_size": 9, "max_position_embeddings": 1, "architectures": ["M"],
           "eos_token_id": 9})",
       "eos_token_id"},
      {R"({"vocab_size": 9, "max_position_embeddings": 1, "architectures": ["M"],
           "eos_token_id": [1, "2"]})",
       "eos_token_id"},
  };
  for (const auto& [text, field] : cases) {
    Write("config.json", text);
    EXPECT_THAT(Error(), AllOf(HasSubstr("config.json"), HasSubstr(field))) << text;
  }
}

// Which copying it would turn into a stack that overflows.
TEST_F(ServedModelTest, AValueThatIsNestedWithoutEndIsRefused) {
  const std::string deep = std::string(1'000'000, '[') + std::string(1'000'000, ']');
  Write("generation_config.json", "{\"eos_token_id\": [" + deep + "]}");
  EXPECT_THAT(Error(), HasSubstr("eos_token_id"));
}

TEST_F(ServedModelTest, SamplingDefaultsOutOfRangeAreRefusedByField) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"temperature": -1})", "temperature"},
      {R"({"temperature": "hot"})", "temperature"},
      {R"({"top_p": 0})", "top_p"},
      {R"({"top_k": -1})", "top_k"},
      {R"({"typical_p": 2})", "typical_p"},
      {R"({"repetition_penalty": 0})", "repetition_penalty"},
      {R"({"repetition_penalty": 1e-60})", "repetition_penalty"},  // no float but 0
      {R"({"do_sample": 1})", "do_sample"},
      {R"({"eos_token_id": 4096})", "eos_token_id"},
  };
  for (const auto& [text, field] : cases) {
    Write("generation_config.json", text);
    EXPECT_THAT(Error(), AllOf(HasSubstr("generation_config.json"), HasSubstr(field))) << text;
  }
}

TEST_F(ServedModelTest, ATokenizerThatIsNoneIsRefused) {
  Write("tokenizer.model", "this is not a sentencepiece model");
  EXPECT_THAT(Error(), HasSubstr("tokenizer.model"));
}

TEST_F(ServedModelTest, ATokenizerThatDoesNotFitTheVocabularyIsRefused) {
  CopyFromTiny("tokenizer.model");
  CopyFromTiny("tokenizer_config.json");
  ASSERT_TRUE(Load().ok());
  Write("config.json", R"({"architectures": ["M"], "vocab_size": 1000,
                           "max_position_embeddings": 512})");
  EXPECT_THAT(Error(), AllOf(HasSubstr("tokenizer.model"), HasSubstr("1000")));
}

TEST_F(ServedModelTest, AnUnknownChatTemplateSaysHowToNameOne) {
  CopyFromTiny("tokenizer.model");
  Write("tokenizer_config.json", R"({"chat_template": "{{ something.of(its, own) }}"})");
  EXPECT_THAT(Error(), HasSubstr("--chat-template"));
  EXPECT_THAT(Error("mystery"), AllOf(HasSubstr("mystery"), HasSubstr("chatml")));
  const auto named = Load("chatml");
  ASSERT_TRUE(named.ok()) << named.status();
  EXPECT_EQ((*named)->chat_template->name(), "chatml");
}

}  // namespace
}  // namespace marcoro
