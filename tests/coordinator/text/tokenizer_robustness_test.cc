// Foreign bytes of every kind end in a status, never in a crash, and no text takes more than its
// share of time.

#include <time.h>

#include <algorithm>
#include <random>
#include <thread>

#include "coordinator/text/chat_template.h"
#include "coordinator/text/template_recognition.h"
#include "coordinator/text/utf8.h"
#include "tests/coordinator/text/test_support.h"

namespace marcoro {
namespace {

std::string ModelBytes() { return ReadFile(TestData("tokenizer/tokenizer.model")); }

// Flips, cuts, copies and inserts bytes.
std::string Mutate(std::string bytes, std::mt19937* random) {
  const int changes = 1 + static_cast<int>((*random)() % 6);
  for (int i = 0; i < changes && !bytes.empty(); ++i) {
    const size_t at = (*random)() % bytes.size();
    const size_t length = (*random)() % 16;
    switch ((*random)() % 5) {
      case 0:
        bytes[at] = static_cast<char>((*random)());
        break;
      case 1:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << (*random)() % 8));
        break;
      case 2:
        bytes.erase(at, length);
        break;
      case 3:
        bytes.insert(at, bytes.substr((*random)() % bytes.size(), length));
        break;
      default:
        if ((*random)() % 8 == 0) bytes.resize(at);
    }
  }
  return bytes;
}

TEST(TokenizerRobustness, AMissingModelIsNotFound) {
  TemporaryFolder folder;
  const absl::Status status = Tokenizer::Load(folder.path()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_NE(status.message().find("tokenizer.model"), absl::string_view::npos) << status;
  EXPECT_EQ(Tokenizer::Load("/nonexistent").status().code(), absl::StatusCode::kNotFound);
}

TEST(TokenizerRobustness, AFileThatIsNoModelIsRefusedByName) {
  const std::string model = ModelBytes();
  for (const std::string& bytes :
       {std::string(), std::string("version https://git-lfs.github.com/spec/v1\n"),
        std::string("{\"a\": 1}"), std::string(1000, '\0'), model.substr(0, model.size() / 2)}) {
    TemporaryFolder folder;
    folder.Write("tokenizer.model", bytes);
    const absl::Status status = Tokenizer::Load(folder.path()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_NE(status.message().find("tokenizer.model"), absl::string_view::npos) << status;
  }
}

TEST(TokenizerRobustness, AModelWhereAFolderIsIsAnError) {
  TemporaryFolder folder;
  std::filesystem::create_directory(folder.path() + "/tokenizer.model");
  EXPECT_FALSE(Tokenizer::Load(folder.path()).ok());
}

TEST(TokenizerRobustness, ABosThatTheVocabularyDoesNotHaveIsRefusedByName) {
  TemporaryFolder folder;
  folder.Write("tokenizer.model", ModelBytes());
  folder.Write("tokenizer_config.json", R"({"bos_token": "<|begin|>"})");
  const absl::Status status = Tokenizer::Load(folder.path()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("<|begin|>"), absl::string_view::npos) << status;
}

TEST(TokenizerRobustness, APaddingTokenThatTheVocabularyDoesNotHaveIsLeftOut) {
  TemporaryFolder folder;
  folder.Write("tokenizer.model", ModelBytes());
  folder.Write("tokenizer_config.json", R"({"pad_token": "[PAD]"})");
  const auto tokenizer = LoadTokenizer(folder.path());
  EXPECT_EQ(tokenizer->size(), 1024);
  EXPECT_EQ(tokenizer->FindSpecial("[PAD]"), std::nullopt);
}

TEST(TokenizerRobustness, DamagedModelsAreRefusedOrWork) {
  const std::string model = ModelBytes();
  const std::string text = "Hello, <s>日本\n world 😀";
  std::mt19937 random(41);
  int refused = 0;
  for (int round = 0; round < 400; ++round) {
    TokenizerConfig config;
    config.legacy = round % 2 == 0;
    const absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer =
        Tokenizer::Create(Mutate(model, &random), config, "tokenizer.model");
    if (!tokenizer.ok()) {
      EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
      ++refused;
      continue;
    }
    const absl::StatusOr<Ids> ids = (*tokenizer)->Encode(text);
    if (!ids.ok()) continue;
    for (const int32_t id : *ids) ASSERT_TRUE(id >= 0 && id < (*tokenizer)->size());
    EXPECT_TRUE(IsValidUtf8((*tokenizer)->Decode(*ids, false)));
  }
  EXPECT_GT(refused, 0);
  EXPECT_LT(refused, 400);
}

TEST(TokenizerRobustness, DamagedConfigurationsAreRefusedOrWork) {
  const std::string model = ModelBytes();
  const std::string config_text = ReadFile(TestData("small/tokenizer_config.json"));
  std::mt19937 random(42);
  int refused = 0;
  for (int round = 0; round < 3000; ++round) {
    absl::StatusOr<TokenizerConfig> config =
        ParseTokenizerConfig(Mutate(config_text, &random), "tokenizer_config.json");
    if (!config.ok()) {
      EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
      ++refused;
      continue;
    }
    ChatTemplate::Recognize(config->chat_template).IgnoreError();
    if (round % 10 != 0) continue;
    const auto tokenizer = Tokenizer::Create(model, *std::move(config), "tokenizer.model");
    if (tokenizer.ok()) EncodeOrDie(**tokenizer, "Hello, <s>日本</s>\n");
  }
  EXPECT_GT(refused, 0);
  EXPECT_LT(refused, 3000);
}

TEST(TokenizerRobustness, DeeplyNestedConfigurationIsRefused) {
  const std::string deep = "{\"a\": " + std::string(200000, '[') + std::string(200000, ']') + "}";
  EXPECT_TRUE(ParseTokenizerConfig(deep, "f").ok());
  EXPECT_FALSE(ParseTokenizerConfig("{\"a\": " + std::string(200000, '['), "f").ok());
}

TEST(TemplateRobustness, DamagedTemplatesAreTakenWithoutACrash) {
  const nlohmann::json templates = ReadJson(TestData("chat_cases.json"))["templates"];
  std::mt19937 random(43);
  for (const nlohmann::json& text : templates) {
    for (int round = 0; round < 3000; ++round) {
      const std::string damaged = Mutate(text.get<std::string>(), &random);
      const absl::StatusOr<ChatTemplate> chat_template = ChatTemplate::Recognize(damaged);
      EXPECT_TRUE(IsValidUtf8(chat_template.status().message()));
    }
  }
}

TEST(TemplateRobustness, ATemplateOfAMegabyteIsUnknown) {
  EXPECT_EQ(RecognizeChatTemplate(std::string(1 << 20, '{')), std::nullopt);
  EXPECT_EQ(RecognizeChatTemplate(std::string(1 << 18, '{')), std::nullopt);
}

TEST(TokenizerRobustness, RandomBytesAreRefusedOrSurviveTheWayThereAndBack) {
  const auto tokenizer = LoadTokenizer(TestData("tiny"));
  std::mt19937 random(44);
  int refused = 0;
  for (int round = 0; round < 5000; ++round) {
    std::string text;
    const size_t size = random() % 12;
    while (text.size() < size) {
      text.push_back(static_cast<char>(random() % 4 == 0 ? random() : random() % 128));
    }
    const absl::StatusOr<Ids> ids = tokenizer->Encode(text, {.parse_special = false});
    ASSERT_EQ(ids.ok(), IsValidUtf8(text));
    if (!ids.ok()) {
      ++refused;
    } else {
      ASSERT_EQ(tokenizer->Decode(*ids, true), text);
    }
  }
  EXPECT_GT(refused, 100);
  EXPECT_LT(refused, 4900);
}

// Processor time of this thread: other work on the machine counts for little.
double SecondsToEncode(const Tokenizer& tokenizer, const std::string& unit, size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += unit;
  double best = 1e9;
  for (int i = 0; i < 3; ++i) {
    timespec begin;
    timespec end;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begin);
    EXPECT_TRUE(tokenizer.Encode(text).ok());
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
    best = std::min(best, end.tv_sec - begin.tv_sec + 1e-9 * (end.tv_nsec - begin.tv_nsec));
  }
  return best;
}

// Sixteen times the text in quadratic time would take 256 times as long.
TEST(TokenizerRobustness, TimeGrowsLittleFasterThanTheText) {
  const std::string nul(1, '\0');
  for (const char* directory : {"tiny", "small"}) {
    const auto tokenizer = LoadTokenizer(TestData(directory));
    for (const std::string& unit :
         {std::string("a"), std::string(" "), std::string("▁"), std::string("😀"),
          std::string("</s>"), std::string("<"), nul}) {
      EXPECT_LT(SecondsToEncode(*tokenizer, unit, 1 << 17),
                100 * SecondsToEncode(*tokenizer, unit, 1 << 13))
          << unit;
    }
  }
}

TEST(TokenizerRobustness, ManyThreadsShareOneTokenizer) {
  const auto tokenizer = LoadTokenizer(TestData("small"));
  const std::string text = "The quick brown fox <s>日本</s> jumps over the lazy dog.";
  const Ids expected = EncodeOrDie(*tokenizer, text);
  const std::string decoded = tokenizer->Decode(expected, true);
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (size_t i = 0; i < wrong.size(); ++i) {
    threads.emplace_back([&, i] {
      for (int round = 0; round < 200; ++round) {
        const absl::StatusOr<Ids> ids = tokenizer->Encode(text);
        wrong[i] += !ids.ok() || *ids != expected || tokenizer->Decode(*ids, true) != decoded;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

}  // namespace
}  // namespace marcoro
