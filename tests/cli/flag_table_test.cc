#include "deploy/flags/flag_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace marcoro {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class FlagTableTest : public testing::Test {
 protected:
  FlagTableTest() {
    table_.Add("name", &name_, {.value = "NAME", .help = "A name.", .choices = {"a", "b"}});
    table_.Add("fast", &fast_, {.help = "Be fast."});
    table_.Add("count", &count_, {.value = "N", .help = "How many.", .minimum = 1, .maximum = 9});
    table_.Add("big", &big_, {.value = "N", .help = "Any seed."});
    table_.Add("share", &share_, {.value = "X", .help = "A share.", .maximum = 1});
    table_.Add("wait", &wait_, {.value = "DURATION", .help = "How long.", .maximum = 60});
    table_.Add("top", &top_, {.value = "N|M", .help = "Unset: all."});
    table_.Add("echo", &echo_, {.help = "Unset: maybe."});
    table_.Add("stop", &stop_, {.value = "TEXT", .help = "Repeatable."});
  }

  std::string Error(const std::vector<std::string>& arguments) {
    return std::string(table_.Parse(arguments).status().message());
  }

  std::string name_ = "a";
  bool fast_ = false;
  int32_t count_ = 3;
  uint64_t big_ = 0;
  double share_ = 0.5;
  absl::Duration wait_ = absl::Seconds(2);
  std::optional<int32_t> top_;
  std::optional<bool> echo_;
  std::vector<std::string> stop_;
  FlagTable table_{"usage: program [flags]"};
};

TEST_F(FlagTableTest, WithoutArgumentsEveryTargetKeepsItsDefault) {
  ASSERT_TRUE(table_.Parse({}).ok());
  EXPECT_EQ(name_, "a");
  EXPECT_EQ(count_, 3);
  EXPECT_FALSE(top_.has_value());
  EXPECT_FALSE(echo_.has_value());
  EXPECT_TRUE(stop_.empty());
}

TEST_F(FlagTableTest, AValueStandsBehindAnEqualsSignOrInTheNextArgument) {
  ASSERT_TRUE(table_.Parse({"--name=b", "--count", "9", "--share=0.25", "--wait=1m"}).ok());
  EXPECT_EQ(name_, "b");
  EXPECT_EQ(count_, 9);
  EXPECT_EQ(share_, 0.25);
  EXPECT_EQ(wait_, absl::Minutes(1));
}

TEST_F(FlagTableTest, AValueMayHoldAnEqualsSign) {
  ASSERT_TRUE(table_.Parse({"--stop=a=b"}).ok());
  EXPECT_THAT(stop_, ElementsAre("a=b"));
}

TEST_F(FlagTableTest, BooleansNeedNoValue) {
  ASSERT_TRUE(table_.Parse({"--fast"}).ok());
  EXPECT_TRUE(fast_);
  ASSERT_TRUE(table_.Parse({"--no-fast"}).ok());
  EXPECT_FALSE(fast_);
  ASSERT_TRUE(table_.Parse({"--fast=true"}).ok());
  EXPECT_TRUE(fast_);
}

TEST_F(FlagTableTest, ABooleanDoesNotTakeTheNextArgument) {
  const auto parsed = table_.Parse({"--fast", "false"});
  ASSERT_TRUE(parsed.ok());
  EXPECT_TRUE(fast_);
  EXPECT_THAT(parsed->positional, ElementsAre("false"));
}

TEST_F(FlagTableTest, AnOptionalIsSetOnlyWhereItIsGiven) {
  ASSERT_TRUE(table_.Parse({"--top=0", "--no-echo"}).ok());
  EXPECT_EQ(top_, 0);
  EXPECT_EQ(echo_, false);
}

TEST_F(FlagTableTest, ARepeatedFlagAddsToAVectorAndOtherwiseTheLastOneCounts) {
  ASSERT_TRUE(table_.Parse({"--stop=x", "--count=1", "--stop", "y", "--count=2"}).ok());
  EXPECT_THAT(stop_, ElementsAre("x", "y"));
  EXPECT_EQ(count_, 2);
}

TEST_F(FlagTableTest, WhatIsNoFlagIsPositionalAndSoIsAllBehindTwoDashes) {
  const auto parsed = table_.Parse({"one", "--count=4", "-", "--", "--count=5"});
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(count_, 4);
  EXPECT_THAT(parsed->positional, ElementsAre("one", "-", "--count=5"));
}

TEST_F(FlagTableTest, NumbersHaveTheWholeRangeOfTheirType) {
  ASSERT_TRUE(table_.Parse({"--big=999999999999999999"}).ok());
  EXPECT_EQ(big_, 999999999999999999u);
}

TEST_F(FlagTableTest, WhatDoesNotFitIsNamedWithWhatWould) {
  EXPECT_EQ(Error({"--count=10"}), "--count=10: must be a whole number from 1 to 9");
  EXPECT_EQ(Error({"--count=0"}), "--count=0: must be a whole number from 1 to 9");
  EXPECT_EQ(Error({"--count=1.5"}), "--count=1.5: must be a whole number from 1 to 9");
  EXPECT_EQ(Error({"--count="}), "--count=: must be a whole number from 1 to 9");
  EXPECT_EQ(Error({"--big=-1"}), "--big=-1: must be a whole number at least 0");
  EXPECT_EQ(Error({"--share=nan"}), "--share=nan: must be a number from 0 to 1");
  EXPECT_EQ(Error({"--share=inf"}), "--share=inf: must be a number from 0 to 1");
  EXPECT_THAT(Error({"--wait=5"}), HasSubstr("--wait=5: must be a duration such as"));
  EXPECT_THAT(Error({"--wait=2m"}), HasSubstr("from 0 to 60 seconds"));
  EXPECT_EQ(Error({"--name=c"}), "--name=c: must be one of a, b");
  EXPECT_EQ(Error({"--fast=perhaps"}), "--fast=perhaps: must be true or false");
  EXPECT_EQ(Error({"--top=x"}), "--top=x: must be a whole number at least 0");
}

TEST_F(FlagTableTest, UnknownFlagsAndMissingValuesAreNamed) {
  EXPECT_EQ(Error({"--bogus=1"}), "unknown flag --bogus; --help lists the flags");
  EXPECT_EQ(Error({"--no-count"}), "unknown flag --no-count; --help lists the flags");
  EXPECT_EQ(Error({"--count"}), "--count needs a value: --count=N");
}

TEST_F(FlagTableTest, ARequiredFlagMustBeGiven) {
  std::string model;
  table_.Add("model", &model, {.value = "DIR", .help = "A folder.", .required = true});
  EXPECT_EQ(Error({}), "--model=DIR is missing; --help lists the flags");
  EXPECT_TRUE(table_.Parse({"--model=x"}).ok());
}

TEST_F(FlagTableTest, HelpIsGivenEvenWhereRequiredFlagsAreMissing) {
  std::string model;
  table_.Add("model", &model, {.value = "DIR", .help = "A folder.", .required = true});
  for (const char* argument : {"--help", "-h"}) {
    const auto parsed = table_.Parse({argument});
    ASSERT_TRUE(parsed.ok());
    EXPECT_EQ(parsed->print, FlagTable::Print::kHelp);
  }
  EXPECT_EQ(table_.Parse({"--help-markdown"})->print, FlagTable::Print::kHelpMarkdown);
  EXPECT_EQ(table_.Parse({"--version"})->print, FlagTable::Print::kVersion);
}

TEST_F(FlagTableTest, HelpShowsDefaultsAndNoneForWhatIsUnset) {
  const std::string help = table_.Help();
  EXPECT_EQ(help.rfind("usage: program [flags]\n\n", 0), 0u);
  EXPECT_THAT(help, HasSubstr("  --count=N\n      How many. Default: 3.\n"));
  EXPECT_THAT(help, HasSubstr("  --wait=DURATION\n      How long. Default: 2s.\n"));
  EXPECT_THAT(help, HasSubstr("  --top=N|M\n      Unset: all.\n"));
  EXPECT_THAT(help, HasSubstr("  --fast\n      Be fast. Default: false.\n"));
}

TEST_F(FlagTableTest, MarkdownIsOneRowAFlagWithPipesEscaped) {
  const std::string markdown = table_.Markdown();
  EXPECT_EQ(markdown.rfind("| flag | default | meaning |\n|---|---|---|\n", 0), 0u);
  EXPECT_THAT(markdown, HasSubstr("| `--count=N` | `3` | How many. |\n"));
  EXPECT_THAT(markdown, HasSubstr("| `--top=N\\|M` |  | Unset: all. |\n"));
}

TEST_F(FlagTableTest, CanonicalFormsAreForPassingOn) {
  const auto canonical = [this](std::vector<std::string> arguments, size_t* index) {
    return *table_.Canonical(arguments, index);
  };
  size_t index = 0;
  EXPECT_EQ(canonical({"--count", "4", "x"}, &index), "--count=4");
  EXPECT_EQ(index, 1u);
  index = 0;
  EXPECT_EQ(canonical({"--no-echo", "x"}, &index), "--echo=false");
  EXPECT_EQ(index, 0u);
  EXPECT_EQ(canonical({"--fast"}, &index), "--fast=true");
  EXPECT_EQ(canonical({"--bogus=1"}, &index), "");
  EXPECT_EQ(canonical({"positional"}, &index), "");
  EXPECT_FALSE(table_.Canonical({"--count"}, &index).ok());
}

}  // namespace
}  // namespace marcoro
