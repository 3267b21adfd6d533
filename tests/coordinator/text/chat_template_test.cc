#include "coordinator/text/chat_template.h"

#include "tests/coordinator/text/test_support.h"

namespace marcoro {
namespace {

using nlohmann::json;
using Messages = std::vector<ChatMessage>;

Messages MessagesOf(const json& list) {
  Messages messages;
  for (const json& message : list) messages.push_back({message["role"], message["content"]});
  return messages;
}

RenderedChat RenderOrDie(const ChatTemplate& chat_template, const Messages& messages,
                         bool add_generation_prompt = true) {
  absl::StatusOr<RenderedChat> chat =
      chat_template.Render(messages, add_generation_prompt, "<s>", "</s>");
  EXPECT_TRUE(chat.ok()) << chat.status();
  return chat.ok() ? *chat : RenderedChat();
}

ChatTemplate NamedOrDie(absl::string_view name) {
  absl::StatusOr<ChatTemplate> chat_template = ChatTemplate::Named(name);
  EXPECT_TRUE(chat_template.ok()) << chat_template.status();
  return *std::move(chat_template);
}

void ExpectRendersAs(const ChatTemplate& chat_template, const json& expected) {
  SCOPED_TRACE(expected.dump());
  const absl::StatusOr<RenderedChat> chat = chat_template.Render(
      MessagesOf(expected["messages"]), expected["add_generation_prompt"], "<s>", "</s>");
  if (expected.contains("error")) {
    EXPECT_EQ(chat.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(chat.status().message(), expected["error"].get<std::string>());
    return;
  }
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_EQ(chat->text, expected["text"].get<std::string>());
}

TEST(ChatTemplateGoldens, NamedTemplatesRenderAsTheReferenceDoes) {
  const json cases = ReadJson(TestData("chat_cases.json"))["cases"];
  ASSERT_GE(cases.size(), 50u);
  for (const json& expected : cases) {
    ExpectRendersAs(NamedOrDie(expected["template"].get<std::string>()), expected);
  }
}

TEST(ChatTemplateGoldens, RecognisedTemplatesRenderAsTheReferenceDoes) {
  const json goldens = ReadJson(TestData("chat_cases.json"));
  for (const json& expected : goldens["cases"]) {
    const std::string name = expected["template"];
    const absl::StatusOr<ChatTemplate> chat_template =
        ChatTemplate::Recognize(goldens["templates"][name].get<std::string>());
    ASSERT_TRUE(chat_template.ok()) << chat_template.status();
    EXPECT_EQ(chat_template->name(), name);
    ExpectRendersAs(*chat_template, expected);
  }
}

TEST(ChatTemplateGoldens, RecognisedHubTemplatesRenderAsTheirJinjaDoes) {
  const json reference = ReadJson(std::string(MARCORO_SOURCE_DIR) +
                                  "/tests/coordinator/text/data/reference_chats.json");
  ASSERT_GE(reference["templates"].size(), 10u);
  for (const json& hub : reference["templates"]) {
    SCOPED_TRACE(hub["name"].get<std::string>());
    const absl::StatusOr<ChatTemplate> chat_template =
        ChatTemplate::Recognize(hub["jinja"].get<std::string>());
    if (hub["family"].is_null()) {
      EXPECT_EQ(chat_template.status().code(), absl::StatusCode::kInvalidArgument);
      continue;
    }
    ASSERT_TRUE(chat_template.ok()) << chat_template.status();
    EXPECT_EQ(chat_template->name(), hub["family"].get<std::string>());
    for (const json& expected : hub["cases"]) ExpectRendersAs(*chat_template, expected);
  }
}

TEST(ChatTemplate, EveryNameIsKnownAndNoOther) {
  for (const absl::string_view name : ChatTemplate::Names()) {
    EXPECT_EQ(NamedOrDie(name).name(), name);
  }
  const absl::Status status = ChatTemplate::Named("vicuna").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("alpaca, chatml, mistral, llama2, raw"), absl::string_view::npos);
}

TEST(ChatTemplate, AnUnknownTemplateIsAnErrorThatSaysHowToNameOne) {
  const std::string zephyr = "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% endfor %}";
  const absl::Status status = ChatTemplate::Recognize(zephyr).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("--chat-template"), absl::string_view::npos) << status;
  EXPECT_NE(status.message().find("{% for m in messages %}"), absl::string_view::npos) << status;
  EXPECT_NE(ChatTemplate::Recognize("").status().message().find("--chat-template"),
            absl::string_view::npos);
}

TEST(ChatTemplate, RawIsTheContentsOneAfterTheOther) {
  const RenderedChat chat = RenderOrDie(NamedOrDie("raw"), {{"user", "a "}, {"what", "b"}});
  EXPECT_EQ(chat.text, "a b");
  EXPECT_EQ(chat.literal_ranges, std::vector<ByteRange>({{0, 2}, {2, 3}}));
}

TEST(ChatTemplate, OnlyChatMlBringsAStopOfItsOwn) {
  for (const absl::string_view name : ChatTemplate::Names()) {
    const auto stops = NamedOrDie(name).default_stops();
    if (name == "chatml") {
      ASSERT_EQ(stops.size(), 1u);
      EXPECT_EQ(stops[0], "<|im_end|>");
    } else {
      EXPECT_TRUE(stops.empty());
    }
  }
}

TEST(ChatTemplate, LiteralRangesAreExactlyTheMessages) {
  const Messages messages = {{"user", " 日本 </s> "}, {"assistant", "two"}, {"user", "three"}};
  for (const absl::string_view name : ChatTemplate::Names()) {
    SCOPED_TRACE(std::string(name));
    const RenderedChat chat = RenderOrDie(NamedOrDie(name), messages);
    std::vector<std::string> literals;
    for (const ByteRange& range : chat.literal_ranges) {
      literals.push_back(chat.text.substr(range.begin, range.end - range.begin));
    }
    const bool strips = name == "llama2";
    std::vector<std::string> contents = {strips ? "日本 </s>" : " 日本 </s> ", "two", "three"};
    if (name == "chatml") {
      contents = {"user", contents[0], "assistant", contents[1], "user", contents[2]};
    }
    EXPECT_EQ(literals, contents);
  }
}

TEST(ChatTemplate, ChatMlWritesAnyRoleButNeverASpecialTokenFromIt) {
  const RenderedChat chat = RenderOrDie(NamedOrDie("chatml"), {{"</s>", "x"}}, false);
  EXPECT_EQ(chat.text, "<|im_start|></s>\nx<|im_end|>\n");
  const auto tokenizer = LoadTokenizer(TestData("small"));
  const Ids ids = *EncodeChat(*tokenizer, chat);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 2), 0);
}

TEST(ChatTemplate, Llama2StripsWhiteSpaceAroundATurnAndBehindAnEmptyOne) {
  const ChatTemplate llama2 = NamedOrDie("llama2");
  EXPECT_EQ(RenderOrDie(llama2, {{"user", "\n a\u3000"}}).text, "<s>[INST] a [/INST]");
  EXPECT_EQ(RenderOrDie(llama2, {{"system", " s "}, {"user", " \n"}}).text,
            "<s>[INST] <<SYS>>\n s \n<</SYS>> [/INST]");
  EXPECT_EQ(llama2.Render({}, true, "<s>", "</s>").status().code(),
            absl::StatusCode::kInvalidArgument);
}

class EncodeChatTest : public testing::TestWithParam<const char*> {
 protected:
  std::unique_ptr<Tokenizer> tokenizer_ = LoadTokenizer(TestData(GetParam()));
};

TEST_P(EncodeChatTest, BeginsWithOneBosWhateverTheTemplateWrites) {
  for (const absl::string_view name : ChatTemplate::Names()) {
    SCOPED_TRACE(std::string(name));
    const Ids ids = *EncodeChat(*tokenizer_, RenderOrDie(NamedOrDie(name), {{"user", "hi"}}));
    ASSERT_GE(ids.size(), 2u);
    EXPECT_EQ(ids[0], 1);
    EXPECT_NE(ids[1], 1);
    EXPECT_EQ(std::count(ids.begin(), ids.end(), 2), 0);
  }
}

TEST_P(EncodeChatTest, ABosInTheContentIsTextAndDoesNotReplaceTheRealOne) {
  const Ids ids = *EncodeChat(*tokenizer_, RenderOrDie(NamedOrDie("raw"), {{"user", "<s>hi"}}));
  EXPECT_EQ(ids[0], 1);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 1), 1);
}

TEST_P(EncodeChatTest, ContentsAreTokenizedAsTheGoldensSay) {
  const char* mode = tokenizer_->legacy() ? "legacy" : "nonlegacy";
  const json cases = ReadJson(TestData("tokenizer_cases.json"))["cases"];
  ASSERT_GE(cases.size(), 30u);
  for (const json& expected : cases) {
    Ids ids = {1};
    for (const int32_t id : expected[mode]["ids_specials_as_text"]) ids.push_back(id);
    const RenderedChat chat = RenderOrDie(NamedOrDie("raw"), {{"user", expected["text"]}});
    EXPECT_EQ(*EncodeChat(*tokenizer_, chat), ids) << expected["text"];
  }
}

TEST_P(EncodeChatTest, WithoutSpecialsInTheContentsItIsTheRenderedTextTokenizedAsAWhole) {
  const Messages messages = {{"user", " What, me? "}, {"assistant", "日本\n"}, {"user", "ok"}};
  for (const absl::string_view name : ChatTemplate::Names()) {
    const RenderedChat chat = RenderOrDie(NamedOrDie(name), messages);
    const bool writes_bos = chat.text.rfind("<s>", 0) == 0;
    EXPECT_EQ(*EncodeChat(*tokenizer_, chat),
              EncodeOrDie(*tokenizer_, chat.text, {.add_bos = !writes_bos}));
  }
}

TEST_P(EncodeChatTest, SpecialsOfTheTemplateAreTokensAndThoseInContentsAreNot) {
  const Messages messages = {{"user", "</s>"}, {"assistant", "<s></s>"}, {"user", "</s>"}};
  // alpaca, mistral and llama2 end the one answer by </s>; llama2 opens both user turns by <s>.
  const auto eos_and_bos = [&](absl::string_view name) {
    const Ids ids = *EncodeChat(*tokenizer_, RenderOrDie(NamedOrDie(name), messages));
    return std::pair(std::count(ids.begin(), ids.end(), 2), std::count(ids.begin(), ids.end(), 1));
  };
  EXPECT_EQ(eos_and_bos("alpaca"), std::pair(1L, 1L));
  EXPECT_EQ(eos_and_bos("mistral"), std::pair(1L, 1L));
  EXPECT_EQ(eos_and_bos("llama2"), std::pair(1L, 2L));
  EXPECT_EQ(eos_and_bos("chatml"), std::pair(0L, 1L));
  EXPECT_EQ(eos_and_bos("raw"), std::pair(0L, 1L));
}

INSTANTIATE_TEST_SUITE_P(Modes, EncodeChatTest, testing::Values("tiny", "small"));

TEST(EncodeChat, ChatMlTokensBeyondTheVocabularyAreUsedWhereTheTokenizerHasThem) {
  TemporaryFolder folder;
  folder.Write("tokenizer.model", ReadFile(TestData("tokenizer/tokenizer.model")));
  folder.Write("tokenizer_config.json", R"({"legacy": false, "added_tokens_decoder": {
      "1024": {"content": "<|im_start|>", "special": true},
      "1025": {"content": "<|im_end|>", "special": true}}})");
  const auto tokenizer = LoadTokenizer(folder.path());
  EXPECT_EQ(tokenizer->size(), 1026);
  EXPECT_EQ(tokenizer->FindSpecial("<|im_end|>"), 1025);
  EXPECT_FALSE(tokenizer->CheckVocabulary(1024).ok());
  const RenderedChat chat = RenderOrDie(NamedOrDie("chatml"), {{"user", "<|im_end|>hi"}});
  const Ids ids = *EncodeChat(*tokenizer, chat);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 1024), 2);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 1025), 1);
  EXPECT_EQ(tokenizer->Decode(ids, false).substr(0, 3), "<s>");
  EXPECT_EQ(tokenizer->Decode(ids, true).find("<|im_start|>"), std::string::npos);
}

TEST(EncodeChat, ContentThatIsNotUtf8IsRefused) {
  const auto tokenizer = LoadTokenizer(TestData("tiny"));
  for (const absl::string_view name : ChatTemplate::Names()) {
    const RenderedChat chat = RenderOrDie(NamedOrDie(name), {{"user", " \x85\xff\xa0"}});
    EXPECT_EQ(EncodeChat(*tokenizer, chat).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace marcoro
