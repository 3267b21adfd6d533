#include "worker/weights/merge/known_names.h"

#include <gtest/gtest.h>

namespace marcoro {
namespace {

const std::vector<std::string_view> kMethods = {"dare_ties", "linear", "slerp", "ties"};

TEST(NearestName, IsTheOneWithTheFewestWrongLetters) {
  EXPECT_EQ(NearestName("slurp", kMethods), "slerp");
  EXPECT_EQ(NearestName("tie", kMethods), "ties");
  EXPECT_EQ(NearestName("dareties", kMethods), "dare_ties");
  EXPECT_EQ(NearestName("liner", kMethods), "linear");
}

TEST(NearestName, IsNoneWhereTooMuchIsWrong) {
  EXPECT_EQ(NearestName("breadcrumbs", kMethods), "");
  EXPECT_EQ(NearestName("", kMethods), "");
  EXPECT_EQ(NearestName("t", {"ab"}), "");  // nothing of it is right
  EXPECT_EQ(NearestName(std::string(100'000, 's'), kMethods), "");
}

TEST(KnownNames, AreListedAfterTheQuestion) {
  EXPECT_EQ(KnownNames("slurp", kMethods),
            "(did you mean slerp? known: dare_ties, linear, slerp, ties)");
  EXPECT_EQ(KnownNames("evolve", {"a", "b"}), "(known: a, b)");
}

}  // namespace
}  // namespace marcoro
