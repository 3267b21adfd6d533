#include "coordinator/text/tokenizer_config.h"

#include "tests/coordinator/text/test_support.h"

namespace marcoro {
namespace {

TokenizerConfig ParseOrDie(const std::string& text) {
  absl::StatusOr<TokenizerConfig> config = ParseTokenizerConfig(text, "tokenizer_config.json");
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? *config : TokenizerConfig();
}

std::vector<std::string> Contents(const std::vector<AddedToken>& tokens) {
  std::vector<std::string> contents;
  for (const AddedToken& token : tokens) contents.push_back(token.content);
  return contents;
}

TEST(TokenizerConfig, DefaultsAreTheReferences) {
  const TokenizerConfig config = ParseOrDie("{}");
  EXPECT_TRUE(config.legacy);
  EXPECT_TRUE(config.add_bos);
  EXPECT_FALSE(config.add_eos);
  EXPECT_TRUE(config.add_prefix_space);
  EXPECT_EQ(config.bos_token, "<s>");
  EXPECT_EQ(config.eos_token, "</s>");
  EXPECT_EQ(config.unk_token, "<unk>");
  EXPECT_EQ(config.chat_template, "");
  EXPECT_EQ(Contents(config.named_tokens), std::vector<std::string>({"<s>", "</s>", "<unk>"}));
}

TEST(TokenizerConfig, NamedTokensAreStringsOrObjectsOrNull) {
  const TokenizerConfig config = ParseOrDie(R"({
      "bos_token": null,
      "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "lstrip": true},
      "pad_token": "</s>",
      "additional_special_tokens": ["<a>", {"content": "<b>"}, "<a>"]})");
  EXPECT_EQ(config.bos_token, std::nullopt);
  EXPECT_EQ(config.eos_token, "<|im_end|>");
  EXPECT_EQ(Contents(config.named_tokens),
            std::vector<std::string>({"<|im_end|>", "<unk>", "</s>", "<a>", "<b>"}));
  EXPECT_TRUE(config.named_tokens[0].lstrip);
}

TEST(TokenizerConfig, AddedTokensHaveIdsAndFlags) {
  const TokenizerConfig config = ParseOrDie(R"({"added_tokens_decoder": {
      "2": {"content": "</s>", "special": true},
      "32000": {"content": "<x>", "rstrip": true, "single_word": true, "normalized": false}}})");
  ASSERT_EQ(config.added_tokens.size(), 2u);
  EXPECT_EQ(config.added_tokens.at(2), AddedToken({.content = "</s>", .special = true}));
  EXPECT_EQ(config.added_tokens.at(32000),
            AddedToken({.content = "<x>", .rstrip = true, .single_word = true}));
}

TEST(TokenizerConfig, OfSeveralChatTemplatesTheDefaultIsTaken) {
  EXPECT_EQ(ParseOrDie(R"({"chat_template": "a"})").chat_template, "a");
  EXPECT_EQ(ParseOrDie(R"({"chat_template": [{"name": "tool_use", "template": "b"},
                                             {"name": "default", "template": "a"}]})")
                .chat_template,
            "a");
  EXPECT_EQ(ParseOrDie(R"({"chat_template": [{"name": "rag", "template": "b"}]})").chat_template,
            "b");
  EXPECT_EQ(ParseOrDie(R"({"chat_template": null})").chat_template, "");
}

TEST(TokenizerConfig, WhatIsMalformedIsRefusedByName) {
  const std::pair<const char*, const char*> kCases[] = {
      {"", "JSON"},
      {"{", "JSON"},
      {"[]", "object"},
      {"{\"a\": \"\xff\"}", "JSON"},
      {R"({"legacy": "yes"})", "legacy"},
      {R"({"add_bos_token": 1})", "add_bos_token"},
      {R"({"bos_token": 1})", "bos_token"},
      {R"({"eos_token": {"text": "x"}})", "eos_token"},
      {R"({"additional_special_tokens": "x"})", "additional_special_tokens"},
      {R"({"added_tokens_decoder": []})", "added_tokens_decoder"},
      {R"({"added_tokens_decoder": {"x": {"content": "a"}}})", "added_tokens_decoder"},
      {R"({"added_tokens_decoder": {"-1": {"content": "a"}}})", "-1"},
      {R"({"added_tokens_decoder": {"2000000000": {"content": "a"}}})", "2000000000"},
      {R"({"added_tokens_decoder": {"1": {"content": 5}}})", "added_tokens_decoder[1]"},
      {R"({"added_tokens_decoder": {"1": {"content": "a", "lstrip": 5}}})", "lstrip"},
      {R"({"chat_template": 5})", "chat_template"},
      {R"({"chat_template": [5]})", "chat_template"},
      {R"({"chat_template": [{"name": "default"}]})", "chat_template"}};
  for (const auto& [text, named] : kCases) {
    const absl::Status status = ParseTokenizerConfig(text, "dir/tokenizer_config.json").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_NE(status.message().find("dir/tokenizer_config.json"), absl::string_view::npos)
        << status;
    EXPECT_NE(status.message().find(named), absl::string_view::npos) << status;
  }
}

TEST(TokenizerConfig, ATokenThatIsTooLongIsRefused) {
  const std::string text = R"({"bos_token": ")" + std::string(1025, 'x') + R"("})";
  EXPECT_EQ(ParseTokenizerConfig(text, "f").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(LoadTokenizerConfig, ATemplateFileTakesPrecedence) {
  TemporaryFolder folder;
  folder.Write("tokenizer_config.json", R"({"chat_template": "in config"})");
  EXPECT_EQ(LoadTokenizerConfig(folder.path())->chat_template, "in config");
  folder.Write("chat_template.jinja", "in file");
  EXPECT_EQ(LoadTokenizerConfig(folder.path())->chat_template, "in file");
}

TEST(LoadTokenizerConfig, OlderFilesCountOnlyWithoutADecoder) {
  TemporaryFolder folder;
  folder.Write("added_tokens.json", R"({"<x>": 7})");
  folder.Write("tokenizer.json",
               R"({"added_tokens": [{"id": 8, "content": "<y>", "special": true}]})");
  const TokenizerConfig older = *LoadTokenizerConfig(folder.path());
  EXPECT_EQ(older.added_tokens.at(7), AddedToken({.content = "<x>"}));
  EXPECT_EQ(older.added_tokens.at(8), AddedToken({.content = "<y>", .special = true}));
  folder.Write("tokenizer_config.json", R"({"added_tokens_decoder": {}})");
  EXPECT_TRUE(LoadTokenizerConfig(folder.path())->added_tokens.empty());
}

TEST(LoadTokenizerConfig, MalformedOlderFilesAreRefusedByName) {
  for (const auto& [file, text] : {std::pair("added_tokens.json", R"({"<x>": "7"})"),
                                   {"added_tokens.json", "7"},
                                   {"special_tokens_map.json", R"({"bos_token": 7})"},
                                   {"tokenizer.json", "{"},
                                   {"tokenizer.json", R"({"added_tokens": 7})"},
                                   {"tokenizer.json", R"({"added_tokens": [{"content": "x"}]})"}}) {
    TemporaryFolder folder;
    folder.Write(file, text);
    const absl::Status status = LoadTokenizerConfig(folder.path()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_NE(status.message().find(file), absl::string_view::npos) << status;
  }
}

}  // namespace
}  // namespace marcoro
