#include "worker/weights/merge/vocabulary_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace marcoro {
namespace {

using ::testing::ElementsAre;

Vocabulary Tokens(std::vector<std::string> tokens) {
  return *Vocabulary::FromTokens(std::move(tokens), "test");
}

TEST(AlignVocabularies, TakesTheRowsOfTheTokens) {
  const Vocabulary ab = Tokens({"a", "b"});
  const Vocabulary ba = Tokens({"b", "a"});
  const VocabularyMap map = AlignVocabularies(ab, {{&ab, 2}, {&ba, 2}}, 0);
  EXPECT_THAT(map.rows, ElementsAre(ElementsAre(0, 1), ElementsAre(1, 0)));
  EXPECT_TRUE(map.substitutes.empty());
}

TEST(AlignVocabularies, SubstitutesTheBaseElseTheMeanOfTheOwners) {
  const Vocabulary a = Tokens({"a"});
  const Vocabulary ab = Tokens({"a", "b"});
  const std::vector<VocabularyTable> tables = {{&ab, 2}, {&a, 1}, {&ab, 2}};
  const VocabularyMap of_base = AlignVocabularies(ab, tables, 2);
  EXPECT_THAT(of_base.rows, ElementsAre(ElementsAre(0, 1), ElementsAre(0, -1), ElementsAre(0, 1)));
  EXPECT_THAT(of_base.substitutes, ElementsAre(ElementsAre(VocabularyRow{2, 1})));
  for (const int32_t without : {-1, 1}) {
    EXPECT_THAT(AlignVocabularies(ab, tables, without).substitutes,
                ElementsAre(ElementsAre(VocabularyRow{0, 1}, VocabularyRow{2, 1})));
  }
}

TEST(AlignVocabularies, ATokenOfNoModelIsZeros) {
  const Vocabulary a = Tokens({"a"});
  const VocabularyMap map = AlignVocabularies(Tokens({"x", "a", "y"}), {{&a, 1}}, 0);
  EXPECT_THAT(map.rows, ElementsAre(ElementsAre(-1, 0, -2)));
  EXPECT_THAT(map.substitutes, ElementsAre(ElementsAre(), ElementsAre()));
}

// A padded or cut table: what the tokenizer knows beyond its rows is not there.
TEST(AlignVocabularies, TokensBeyondATablesRowsAreMissing) {
  const Vocabulary ab = Tokens({"a", "b"});
  const VocabularyMap map = AlignVocabularies(ab, {{&ab, 1}, {&ab, 5}}, 0);
  EXPECT_THAT(map.rows, ElementsAre(ElementsAre(0, -1), ElementsAre(0, 1)));
  EXPECT_THAT(map.substitutes, ElementsAre(ElementsAre(VocabularyRow{1, 1})));
}

TEST(IsIdentity, HoldsForTablesOfTheSameTokens) {
  const Vocabulary ab = Tokens({"a", "b"});
  const std::vector<VocabularyTable> same = {{&ab, 2}, {&ab, 2}};
  EXPECT_TRUE(IsIdentity(AlignVocabularies(ab, same, 0), same));
  EXPECT_TRUE(IsIdentity(CommonRows(2, 2), same));
  const std::vector<VocabularyTable> padded = {{&ab, 2}, {&ab, 3}};
  EXPECT_FALSE(IsIdentity(AlignVocabularies(ab, padded, 0), padded));
  EXPECT_FALSE(IsIdentity(CommonRows(2, 2), padded));
  const Vocabulary ba = Tokens({"b", "a"});
  const std::vector<VocabularyTable> swapped = {{&ab, 2}, {&ba, 2}};
  EXPECT_FALSE(IsIdentity(AlignVocabularies(ab, swapped, 0), swapped));
}

}  // namespace
}  // namespace marcoro
