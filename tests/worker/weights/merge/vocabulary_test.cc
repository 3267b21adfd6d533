#include "worker/weights/merge/vocabulary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "tests/worker/weights/checkpoint_files.h"
#include "worker/weights/merge/sentencepiece_tokens.h"

namespace marcoro {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::ReadFile;
using ::testing::SizeIs;
using testing::TempFolder;
using testing::TestData;
using testing::WriteFile;

std::string TokenizerModel() { return ReadFile(TestData("tokenizer/tokenizer.model")); }

// A ModelProto with one-letter pieces.
std::string Pieces(const std::string& letters) {
  std::string bytes;
  for (const char letter : letters) bytes += std::string("\x0a\x03\x0a\x01") + letter;
  return bytes;
}

absl::Status LoadError(const TempFolder& folder) { return LoadVocabulary(folder.path()).status(); }

// Ids as sentencepiece gives them: tokenizer_cases.json is its own output.
TEST(SentencePieceTokens, HaveTheIdsOfTheModel) {
  const auto tokens = ReadSentencePieceTokens(TokenizerModel(), "f");
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  ASSERT_EQ(tokens->size(), 1024u);
  EXPECT_EQ((*tokens)[0], "<unk>");
  EXPECT_EQ((*tokens)[1], "<s>");
  EXPECT_EQ((*tokens)[2], "</s>");
  EXPECT_EQ((*tokens)[3], "<0x00>");
  EXPECT_EQ((*tokens)[3 + 255], "<0xFF>");
}

TEST(SentencePieceTokens, OfOtherBytesAreRefused) {
  for (const std::string& bytes :
       {std::string(), std::string("{\"a\": 1}"), std::string("\x0a"), std::string("\x0a\x05\x0a"),
        std::string("\x0a\x00", 2), std::string(20, '\xff'), Pieces("ab") + "\x0a"}) {
    EXPECT_EQ(ReadSentencePieceTokens(bytes, "f").status(),
              absl::InvalidArgumentError("f: not a sentencepiece model"));
  }
}

TEST(SentencePieceTokens, SurviveMutations) {
  std::mt19937_64 random(8);
  const std::string original = TokenizerModel().substr(0, 4000);
  for (int round = 0; round < 20'000; ++round) {
    std::string bytes = original.substr(0, 1 + random() % original.size());
    bytes[random() % bytes.size()] = static_cast<char>(random());
    const auto tokens = ReadSentencePieceTokens(bytes, "f");
    if (!tokens.ok()) continue;
    for (const std::string& token : *tokens) ASSERT_FALSE(token.empty());
  }
}

TEST(LoadVocabulary, AddsTheTokensOfTokenizerConfig) {
  TempFolder folder;
  WriteFile(folder.File("tokenizer.model"), Pieces("ab"));
  WriteFile(folder.File("tokenizer_config.json"),
            R"({"added_tokens_decoder": {"3": {"content": "<y>"}, "2": {"content": "<x>"}}})");
  WriteFile(folder.File("added_tokens.json"), R"({"<not read>": 9})");
  const auto vocabulary = LoadVocabulary(folder.path());
  ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
  EXPECT_THAT(vocabulary->tokens(), ElementsAre("a", "b", "<x>", "<y>"));
  EXPECT_EQ(vocabulary->Find("<y>"), 3);
  EXPECT_EQ(vocabulary->Find("c"), -1);
  EXPECT_THAT(vocabulary->FirstTokens(3).tokens(), ElementsAre("a", "b", "<x>"));
  EXPECT_EQ(vocabulary->FirstTokens(3).Find("<y>"), -1);
  EXPECT_THAT(vocabulary->FirstTokens(9).tokens(), SizeIs(4));
}

TEST(LoadVocabulary, AddsTheTokensOfOlderWriters) {
  TempFolder folder;
  WriteFile(folder.File("tokenizer.model"), Pieces("ab"));
  WriteFile(folder.File("tokenizer_config.json"), "{}");
  WriteFile(folder.File("added_tokens.json"), R"({"<x>": 2})");
  EXPECT_THAT(LoadVocabulary(folder.path())->tokens(), ElementsAre("a", "b", "<x>"));
}

TEST(LoadVocabulary, ReadsTokenizerJsonWhereThereIsNoModel) {
  TempFolder folder;
  WriteFile(
      folder.File("tokenizer.json"),
      R"({"model": {"vocab": {"b": 1, "a": 0}}, "added_tokens": [{"id": 2, "content": "c"}]})");
  EXPECT_THAT(LoadVocabulary(folder.path())->tokens(), ElementsAre("a", "b", "c"));
}

TEST(LoadVocabulary, OfNoTokenizerIsNotFound) {
  EXPECT_EQ(LoadError(TempFolder()).code(), absl::StatusCode::kNotFound);
}

TEST(LoadVocabulary, RefusesMalformedFiles) {
  const std::string config = "tokenizer_config.json";
  const std::pair<std::string, std::string> cases[] = {
      {config, "[]"},
      {config, R"({"added_tokens_decoder": []})"},
      {config, R"({"added_tokens_decoder": {"x": {"content": "a"}}})"},
      {config, R"({"added_tokens_decoder": {"2": "a"}})"},
      {config, R"({"added_tokens_decoder": {"2": {"content": 1}}})"},
      {config, R"({"added_tokens_decoder": {"-1": {"content": "a"}}})"},
      {"added_tokens.json", R"({"a": 99999999999999999999})"},
      {"added_tokens.json", R"({"a": 18446744073709551615})"},
      {"added_tokens.json", R"({"a": 4194304})"},
      {"added_tokens.json", "not JSON"},
  };
  for (const auto& [file, text] : cases) {
    TempFolder folder;
    WriteFile(folder.File("tokenizer.model"), Pieces("ab"));
    WriteFile(folder.File(file), text);
    EXPECT_EQ(LoadError(folder).code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(LoadError(folder).message()), HasSubstr(file)) << text;
  }
}

TEST(LoadVocabulary, RefusesIdsWithoutTokens) {
  TempFolder folder;
  WriteFile(folder.File("tokenizer.model"), Pieces("ab"));
  WriteFile(folder.File("added_tokens.json"), R"({"<x>": 3})");
  EXPECT_THAT(std::string(LoadError(folder).message()), HasSubstr("no token of id 2"));
}

}  // namespace
}  // namespace marcoro
