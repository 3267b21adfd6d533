#include "coordinator/text/tokenizer.h"

#include <algorithm>
#include <utility>

#include "tests/coordinator/text/test_support.h"

namespace marcoro {
namespace {

using nlohmann::json;

const EncodeOptions kWithoutBos = {.add_bos = false};
const EncodeOptions kSpecialsAsText = {.add_bos = false, .parse_special = false};

// tiny is legacy, small is not; their vocabulary is the same.
class TokenizerGoldens : public testing::TestWithParam<std::pair<const char*, const char*>> {};

TEST_P(TokenizerGoldens, IdsAreTheReferences) {
  const auto [directory, mode] = GetParam();
  const auto tokenizer = LoadTokenizer(TestData(directory));
  ASSERT_NE(tokenizer, nullptr);
  const json cases = ReadJson(TestData("tokenizer_cases.json"))["cases"];
  ASSERT_GE(cases.size(), 30u);
  for (const json& expected : cases) {
    const std::string text = expected["text"];
    SCOPED_TRACE(expected["text"].dump());
    const json& ids = expected[mode];
    EXPECT_EQ(EncodeOrDie(*tokenizer, text), ids["ids"].get<Ids>());
    EXPECT_EQ(EncodeOrDie(*tokenizer, text, kWithoutBos), ids["ids_without_bos"].get<Ids>());
    EXPECT_EQ(EncodeOrDie(*tokenizer, text, kSpecialsAsText),
              ids["ids_specials_as_text"].get<Ids>());
  }
}

TEST_P(TokenizerGoldens, ALiteralRangeOverTheWholeTextIsTextWithoutSpecials) {
  const auto [directory, mode] = GetParam();
  const auto tokenizer = LoadTokenizer(TestData(directory));
  const json cases = ReadJson(TestData("tokenizer_cases.json"))["cases"];
  for (const json& expected : cases) {
    const std::string text = expected["text"];
    SCOPED_TRACE(expected["text"].dump());
    EXPECT_EQ(EncodeOrDie(*tokenizer, text, kWithoutBos, {{0, text.size()}}),
              expected[mode]["ids_specials_as_text"].get<Ids>());
  }
}

TEST_P(TokenizerGoldens, DecodingIsSentencepieces) {
  const auto tokenizer = LoadTokenizer(TestData(GetParam().first));
  const json cases = ReadJson(TestData("tokenizer_cases.json"))["cases"];
  for (const json& expected : cases) {
    const Ids ids = expected["sentencepiece_ids"];
    EXPECT_EQ(tokenizer->Decode(ids, /*skip_special=*/true),
              expected["sentencepiece_decoded"].get<std::string>());
    EXPECT_EQ(tokenizer->Decode(ids, /*skip_special=*/false),
              expected["sentencepiece_decoded"].get<std::string>());
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, TokenizerGoldens,
                         testing::Values(std::pair("tiny", "legacy"), std::pair("window", "legacy"),
                                         std::pair("small", "nonlegacy")),
                         [](const auto& test) { return test.param.first; });

TEST(TokenizerReference, IdsAreTheReferencesForEveryKindOfConfiguration) {
  const json reference = ReferenceCases();
  ASSERT_EQ(reference["tokenizers"].size(), 9u);
  const std::string model = ReadFile(TestData("tokenizer/tokenizer.model"));
  for (const json& configuration : reference["tokenizers"]) {
    SCOPED_TRACE(configuration["name"].get<std::string>());
    TemporaryFolder folder;
    folder.Write("tokenizer.model", model);
    for (const auto& [name, content] : configuration["files"].items()) {
      folder.Write(name, content.dump());
    }
    const auto tokenizer = LoadTokenizer(folder.path());
    ASSERT_NE(tokenizer, nullptr);
    for (const json& expected : configuration["cases"]) {
      const std::string text = expected[0];
      SCOPED_TRACE(expected[0].dump());
      EXPECT_EQ(EncodeOrDie(*tokenizer, text), expected[1].get<Ids>());
      const EncodeOptions as_text = {.add_bos = false, .add_eos = false, .parse_special = false};
      EXPECT_EQ(EncodeOrDie(*tokenizer, text, as_text), expected[2].get<Ids>());
    }
  }
}

TEST(TokenizerReference, DecodingIsSentencepiecesForRandomAndSickSequences) {
  const auto tokenizer = LoadTokenizer(TestData("tiny"));
  const json decodings = ReferenceCases()["decodings"];
  ASSERT_GE(decodings.size(), 300u);
  for (const json& expected : decodings) {
    EXPECT_EQ(tokenizer->Decode(expected["ids"].get<Ids>(), /*skip_special=*/true),
              expected["text"].get<std::string>())
        << expected["ids"];
  }
}

class TinyTokenizer : public testing::Test {
 protected:
  std::unique_ptr<Tokenizer> tokenizer_ = LoadTokenizer(TestData("tiny"));
};

TEST_F(TinyTokenizer, KnowsWhatItsTokensAre) {
  EXPECT_EQ(tokenizer_->size(), 1024);
  EXPECT_EQ(tokenizer_->bos_id(), 1);
  EXPECT_EQ(tokenizer_->eos_id(), 2);
  EXPECT_EQ(tokenizer_->bos_text(), "<s>");
  EXPECT_EQ(tokenizer_->eos_text(), "</s>");
  EXPECT_TRUE(tokenizer_->legacy());
  EXPECT_TRUE(tokenizer_->add_bos());
  for (int32_t id = 0; id < tokenizer_->size(); ++id) {
    EXPECT_EQ(tokenizer_->IsSpecial(id), id < 3) << id;
  }
  EXPECT_EQ(tokenizer_->FindSpecial("</s>"), 2);
  EXPECT_EQ(tokenizer_->FindSpecial("<|im_end|>"), std::nullopt);
}

TEST_F(TinyTokenizer, TokensReadAsTextOrAsBytes) {
  EXPECT_EQ(tokenizer_->TokenText(1), "<s>");
  EXPECT_EQ(tokenizer_->TokenText(261), " a");
  EXPECT_EQ(tokenizer_->TokenText(259), "  ");
  EXPECT_EQ(tokenizer_->TokenText(3 + 'A'), "A");
  EXPECT_EQ(tokenizer_->TokenBytes(3 + 0xe6), "\xe6");
  EXPECT_EQ(tokenizer_->TokenText(3 + 0xe6), "\ufffd");
  EXPECT_EQ(tokenizer_->TokenBytes(3), absl::string_view("\0", 1));
}

TEST_F(TinyTokenizer, IdsThatAreNoTokenWriteNothing) {
  for (const int32_t id : {-1, 1024, INT32_MAX, INT32_MIN}) {
    EXPECT_EQ(tokenizer_->TokenText(id), "");
    EXPECT_FALSE(tokenizer_->IsSpecial(id));
    EXPECT_EQ(tokenizer_->Decode({261, id, 280}, true), "a b");
  }
}

TEST_F(TinyTokenizer, SpecialTokensAreWrittenOnlyWhenAskedFor) {
  const Ids ids = {1, 261, 2, 280};  // <s>, " a", </s>, " b"
  EXPECT_EQ(tokenizer_->Decode(ids, /*skip_special=*/true), "a b");
  EXPECT_EQ(tokenizer_->Decode(ids, /*skip_special=*/false), "<s>a</s> b");
  EXPECT_EQ(tokenizer_->Decode({0, 261}, /*skip_special=*/true), "a");
}

TEST_F(TinyTokenizer, DecodingWhatWasEncodedGivesTheText) {
  for (const std::string text :
       {"", " ", "   leading", "trailing   ", "日本語 😀 é\u0301", "a\nb\t\r\n", "Hello, world!"}) {
    EXPECT_EQ(tokenizer_->Decode(EncodeOrDie(*tokenizer_, text), true), text);
  }
  const std::string nul("a\0b", 3);
  EXPECT_EQ(tokenizer_->Decode(EncodeOrDie(*tokenizer_, nul), true), nul);
}

TEST_F(TinyTokenizer, BosAndEosFollowTheOptions) {
  EXPECT_EQ(EncodeOrDie(*tokenizer_, "a", {.add_bos = true, .add_eos = true}), Ids({1, 261, 2}));
  EXPECT_EQ(EncodeOrDie(*tokenizer_, "a", {.add_bos = false}), Ids({261}));
  EXPECT_EQ(EncodeOrDie(*tokenizer_, "", {}), Ids({1}));
}

TEST_F(TinyTokenizer, SpecialTokensAreFoundOnlyOutsideOfLiteralRanges) {
  //                        0123456789
  const std::string text = "</s>ab</s>";
  EXPECT_EQ(EncodeOrDie(*tokenizer_, text, kWithoutBos).front(), 2);
  const auto count_eos = [&](const std::vector<ByteRange>& ranges) {
    const Ids ids = EncodeOrDie(*tokenizer_, text, kWithoutBos, ranges);
    return std::count(ids.begin(), ids.end(), 2);
  };
  EXPECT_EQ(count_eos({}), 2);
  EXPECT_EQ(count_eos({{4, 6}}), 2);  // touches neither
  EXPECT_EQ(count_eos({{0, 4}}), 1);  // the first
  EXPECT_EQ(count_eos({{3, 4}}), 1);  // a part of the first
  EXPECT_EQ(count_eos({{0, 1}}), 1);
  EXPECT_EQ(count_eos({{5, 7}}), 1);  // a part of the second
  EXPECT_EQ(count_eos({{1, 2}, {9, 10}}), 0);
  EXPECT_EQ(count_eos({{0, 10}}), 0);
  EXPECT_EQ(count_eos({{2, 2}, {8, 8}}), 2);  // empty ranges protect nothing
}

TEST_F(TinyTokenizer, TextAcrossTheBorderOfALiteralRangeIsTokenizedAsOne) {
  for (const std::string text : {"Hello, world!", "a  b", "日本語", "x = 3.14159e-10"}) {
    const Ids whole = EncodeOrDie(*tokenizer_, text);
    for (size_t begin = 0; begin <= text.size(); ++begin) {
      for (size_t end = begin; end <= text.size(); ++end) {
        ASSERT_EQ(EncodeOrDie(*tokenizer_, text, {}, {{begin, end}}), whole);
      }
    }
  }
}

TEST(NonLegacyTokenizer, LiteralRangesSurviveTheReplacementOfSpaceSymbols) {
  const auto tokenizer = LoadTokenizer(TestData("small"));
  const std::string text = "▁▁</s>▁</s>";  // 6 + 4 + 3 + 4 bytes
  const auto eos_count = [&](const std::vector<ByteRange>& ranges) {
    const Ids ids = EncodeOrDie(*tokenizer, text, {}, ranges);
    return std::count(ids.begin(), ids.end(), 2);
  };
  EXPECT_EQ(eos_count({}), 2);
  EXPECT_EQ(eos_count({{0, 6}, {10, 13}}), 2);
  EXPECT_EQ(eos_count({{6, 10}}), 1);
  EXPECT_EQ(eos_count({{3, 7}, {16, 17}}), 0);
}

TEST_F(TinyTokenizer, AVocabularyThatIsTooSmallIsRefused) {
  EXPECT_TRUE(tokenizer_->CheckVocabulary(1024).ok());
  EXPECT_TRUE(tokenizer_->CheckVocabulary(1088).ok());  // padded
  const absl::Status status = tokenizer_->CheckVocabulary(1000);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("tokenizer.model"), absl::string_view::npos) << status;
  EXPECT_NE(status.message().find("1000"), absl::string_view::npos) << status;
}

TEST_F(TinyTokenizer, TextThatIsNotUtf8IsRefused) {
  for (const std::string text : {"\xff", "ok \xc3", "\xed\xa0\x80", "a\xf5\x80\x80\x80"}) {
    EXPECT_EQ(tokenizer_->Encode(text).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(TinyTokenizer, TextBeyondTheLimitIsRefused) {
  const std::string text(Tokenizer::kMaxTextBytes + 1, 'a');
  EXPECT_EQ(tokenizer_->Encode(text).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(TinyTokenizer, NoTokenIsLongerThanTheLongest) {
  size_t longest = 0;
  for (int32_t id = 0; id < tokenizer_->size(); ++id) {
    longest = std::max(longest, tokenizer_->TokenBytes(id).size());
  }
  EXPECT_EQ(tokenizer_->vocabulary().longest_token(), longest);
}

}  // namespace
}  // namespace marcoro
