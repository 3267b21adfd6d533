#include "coordinator/text/detokenizer.h"

#include <random>

#include "coordinator/text/utf8.h"
#include "tests/coordinator/text/test_support.h"

namespace marcoro {
namespace {

constexpr int32_t kA = 261;  // " a"
constexpr int32_t kB = 280;  // " b"
constexpr int32_t Byte(int value) { return 3 + value; }

// The rules of the header, applied to a sequence as a whole.
std::string DecodeWhole(const Tokenizer& tokenizer, const Ids& ids, bool skip_special) {
  std::string text;
  bool at_start = true;
  for (size_t i = 0; i < ids.size();) {
    std::string run;
    while (i < ids.size() && tokenizer.vocabulary().kind(ids[i]) == TokenKind::kByte) {
      run += std::string(tokenizer.TokenBytes(ids[i++]));
    }
    text += SanitizeUtf8(run);
    at_start = at_start && run.empty();
    if (i == ids.size()) break;
    std::string piece(tokenizer.TokenBytes(ids[i]));
    if (tokenizer.IsSpecial(ids[i])) {
      text += skip_special ? "" : piece;
    } else if (!piece.empty()) {
      if (at_start && piece[0] == ' ') piece.erase(0, 1);
      at_start = false;
      text += piece;
    }
    ++i;
  }
  return text;
}

class DetokenizerTest : public testing::Test {
 protected:
  // What each token releases, and at the end what Finish does.
  std::vector<std::string> Pieces(const Ids& ids, const Ids& context = {},
                                  bool skip_special = true) {
    Detokenizer detokenizer(tokenizer_->vocabulary(), skip_special, context);
    std::vector<std::string> pieces;
    for (const int32_t id : ids) detokenizer.Push(id, &pieces.emplace_back());
    detokenizer.Finish(&pieces.emplace_back());
    return pieces;
  }

  std::unique_ptr<Tokenizer> tokenizer_ = LoadTokenizer(TestData("tiny"));
};

using Texts = std::vector<std::string>;

TEST_F(DetokenizerTest, TheFirstWordLosesItsSpaceAndTheOthersKeepIt) {
  EXPECT_EQ(Pieces({kA, kB}), Texts({"a", " b", ""}));
}

TEST_F(DetokenizerTest, SpecialTokensInFrontDoNotCountAsText) {
  EXPECT_EQ(Pieces({1, kA, kB}), Texts({"", "a", " b", ""}));
  EXPECT_EQ(Pieces({1, kA}, {}, /*skip_special=*/false), Texts({"<s>", "a", ""}));
}

TEST_F(DetokenizerTest, AContinuationKeepsItsSpace) {
  EXPECT_EQ(Pieces({kB}, {1, kA}), Texts({" b", ""}));
  EXPECT_EQ(Pieces({kB}, {1}), Texts({"b", ""}));  // nothing but <s> before it
}

TEST_F(DetokenizerTest, ACharacterIsReleasedWhenItIsWhole) {
  EXPECT_EQ(Pieces({Byte(0xf0), Byte(0x9f), Byte(0x98), Byte(0x80), kA}),
            Texts({"", "", "", "😀", " a", ""}));
}

TEST_F(DetokenizerTest, WhatTurnsOutToBeNoCharacterIsReleasedAtOnce) {
  EXPECT_EQ(Pieces({Byte(0xe2), Byte('x')}), Texts({"", "\ufffdx", ""}));
  EXPECT_EQ(Pieces({Byte(0xe2), Byte(0x82), kA}), Texts({"", "", "\ufffd\ufffd a", ""}));
  EXPECT_EQ(Pieces({Byte(0xed), Byte(0xa0)}), Texts({"", "\ufffd\ufffd", ""}));
  EXPECT_EQ(Pieces({Byte(0x80)}), Texts({"\ufffd", ""}));
  EXPECT_EQ(Pieces({Byte(0xf0), Byte(0x9f), Byte(0x98), Byte(0xf0), Byte(0x9f)}),
            Texts({"", "", "", "\ufffd\ufffd\ufffd", "", "\ufffd\ufffd"}));
}

TEST_F(DetokenizerTest, AnUnfinishedCharacterIsReleasedAtTheEnd) {
  EXPECT_EQ(Pieces({kA, Byte(0xe2), Byte(0x82)}), Texts({"a", "", "", "\ufffd\ufffd"}));
}

TEST_F(DetokenizerTest, ACharacterThatTheContextBeginsComesWhole) {
  EXPECT_EQ(Pieces({Byte(0xac), kA}, {kA, Byte(0xe2), Byte(0x82)}), Texts({"€", " a", ""}));
}

Ids RandomIds(std::mt19937* random, int32_t size) {
  static const std::string kCharacters = "é€😀日\ufffd\U0010ffff";
  Ids ids;
  const int parts = static_cast<int>((*random)() % 24);
  for (int part = 0; part < parts; ++part) {
    switch ((*random)() % 6) {
      case 0:
        ids.push_back(static_cast<int32_t>((*random)() % size));
        break;
      case 1:
        ids.push_back(Byte((*random)() % 256));
        break;
      case 2:
        ids.push_back((*random)() % 3);  // special
        break;
      case 3: {  // characters cut somewhere
        const size_t begin = (*random)() % kCharacters.size();
        const size_t length = (*random)() % 8;
        for (const char c : kCharacters.substr(begin, length)) {
          ids.push_back(Byte(static_cast<uint8_t>(c)));
        }
        break;
      }
      case 4:
        ids.push_back((*random)() % 2 == 0 ? 938 : 259);  // spaces
        break;
      default:
        ids.push_back(static_cast<int32_t>((*random)() % (size + 20)) - 10);  // perhaps no token
    }
  }
  return ids;
}

TEST_F(DetokenizerTest, ReleasedTextIsFinalAndAddsUpToTheWholeAtAnyCut) {
  std::mt19937 random(12);
  for (int round = 0; round < 20000; ++round) {
    const Ids ids = RandomIds(&random, tokenizer_->size());
    const bool skip_special = round % 2 == 0;
    SCOPED_TRACE(testing::PrintToString(ids));
    const std::string whole = DecodeWhole(*tokenizer_, ids, skip_special);
    ASSERT_EQ(tokenizer_->Decode(ids, skip_special), whole);

    std::string released;
    std::vector<size_t> released_after;
    Detokenizer detokenizer(tokenizer_->vocabulary(), skip_special);
    for (const int32_t id : ids) {
      detokenizer.Push(id, &released);
      ASSERT_TRUE(IsValidUtf8(released));
      released_after.push_back(released.size());
    }
    detokenizer.Finish(&released);
    ASSERT_EQ(released, whole);

    // A generation that begins at a cut releases what the whole does from there on.
    const size_t cut = ids.empty() ? 0 : random() % ids.size();
    const Ids context(ids.begin(), ids.begin() + cut);
    std::string continuation;
    Detokenizer continued(tokenizer_->vocabulary(), skip_special, context);
    for (size_t i = cut; i < ids.size(); ++i) continued.Push(ids[i], &continuation);
    continued.Finish(&continuation);
    ASSERT_EQ(continuation, whole.substr(cut == 0 ? 0 : released_after[cut - 1]));
  }
}

TEST_F(DetokenizerTest, AtMostThreeBytesAreEverHeldBack) {
  std::mt19937 random(5);
  Detokenizer detokenizer(tokenizer_->vocabulary(), true);
  std::string released;
  for (int i = 0; i < 10000; ++i) {
    detokenizer.Push(Byte(random() % 256), &released);
    Detokenizer ended_here = detokenizer;
    std::string rest;
    ended_here.Finish(&rest);
    ASSERT_LE(rest.size(), 3 * kReplacementCharacter.size());
  }
}

}  // namespace
}  // namespace marcoro
