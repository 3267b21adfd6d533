// The parts of downloading that need no server.
#include <map>

#include "absl/strings/str_cat.h"
#include "deploy/hub/checksum.h"
#include "deploy/hub/file_selection.h"
#include "deploy/hub/retry.h"
#include "deploy/hub/url.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace marcoro {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::Le;
using ::testing::UnorderedElementsAre;

TEST(OriginOfTest, IsSchemeHostAndPort) {
  EXPECT_EQ(*OriginOf("https://huggingface.co/a/b?c"), "https://huggingface.co:443");
  EXPECT_EQ(*OriginOf("http://LocalHost/x"), "http://localhost:80");
  EXPECT_EQ(*OriginOf("https://huggingface.co:8443"), "https://huggingface.co:8443");
  EXPECT_EQ(*OriginOf("https://user:word@huggingface.co"), "https://huggingface.co:443");
  for (const char* text : {"", "huggingface.co", "ftp://a/b", "file:///etc/passwd", "http://"}) {
    EXPECT_FALSE(OriginOf(text).ok()) << text;
  }
}

TEST(ResolveRedirectTest, LeadsToAbsoluteAndRelativeUrls) {
  EXPECT_EQ(*ResolveRedirect("https://a/b/c", "https://d/e?f=g"), "https://d/e?f=g");
  EXPECT_EQ(*ResolveRedirect("https://a/b/c", "/x/y"), "https://a/x/y");
  EXPECT_EQ(*ResolveRedirect("https://a/b/c", "d"), "https://a/b/d");
  EXPECT_EQ(*ResolveRedirect("http://a/b", "//other/d"), "http://other/d");
}

TEST(ResolveRedirectTest, NeverLeavesHttpNorGivesUpEncryption) {
  for (const char* location : {"http://a/b", "file:///etc/passwd", "ftp://a/b"}) {
    EXPECT_FALSE(ResolveRedirect("https://a/b", location).ok()) << location;
  }
  EXPECT_TRUE(ResolveRedirect("http://a/b", "https://a/b").ok());
}

TEST(PercentEncodedTest, KeepsWhatIsPlain) {
  EXPECT_EQ(PercentEncoded("aZ0-._~", false), "aZ0-._~");
  EXPECT_EQ(PercentEncoded("refs/pr/1", false), "refs%2Fpr%2F1");
  EXPECT_EQ(PercentEncoded("a b/ä?#%", true), "a%20b/%C3%A4%3F%23%25");
}

// The hashes of "hello\n" and of nothing, as sha256sum and git hash-object print them.
constexpr char kHelloSha256[] = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
constexpr char kHelloGit[] = "ce013625030ba8dba906f756967f9e9ca394464a";
constexpr char kEmptyGit[] = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391";

TEST(ChecksumTest, KnowsBothKindsByTheirLength) {
  for (const char* hash : {kHelloSha256, kHelloGit}) {
    auto checksum = Checksum::Create(hash, 6);
    ASSERT_TRUE(checksum.ok()) << checksum.status();
    checksum->Add("hel");
    checksum->Add("lo\n");
    EXPECT_TRUE(checksum->Matches()) << hash;
    checksum->Restart();
    checksum->Add("hello ");
    EXPECT_FALSE(checksum->Matches()) << hash;
  }
  auto empty = Checksum::Create(kEmptyGit, 0);
  ASSERT_TRUE(empty.ok());
  EXPECT_TRUE(empty->Matches());
}

TEST(ChecksumTest, OtherEtagsAreNone) {
  for (const std::string& hash :
       {std::string(), std::string("../../etc/passwd"), std::string(32, 'a'), std::string(64, 'g'),
        std::string(64, 'A'), std::string(41, '0')}) {
    EXPECT_FALSE(Checksum::Create(hash, 1).ok()) << hash;
  }
}

TEST(StrippedEtagTest, TakesQuotesAndWeaknessAway) {
  EXPECT_EQ(StrippedEtag("\"abc\""), "abc");
  EXPECT_EQ(StrippedEtag("W/\"abc\""), "abc");
  EXPECT_EQ(StrippedEtag("abc"), "abc");
}

TEST(RetryPolicyTest, WaitsTwiceAsLongEachTimeUpToALimitAndThenGivesUp) {
  RetryPolicy policy({.attempts = 5,
                      .first_delay = absl::Milliseconds(100),
                      .longest_delay = absl::Milliseconds(300)});
  for (const int longest : {100, 200, 300, 300}) {
    const auto delay = policy.Failed(TransientError("again"));
    ASSERT_TRUE(delay.has_value());
    EXPECT_THAT(*delay,
                AllOf(Ge(absl::Milliseconds(longest) / 2), Le(absl::Milliseconds(longest))));
  }
  EXPECT_FALSE(policy.Failed(TransientError("again")).has_value());
}

TEST(RetryPolicyTest, DelaysAreSpreadAtRandom) {
  std::map<absl::Duration, int> delays;
  for (int i = 0; i < 20; ++i) ++delays[*RetryPolicy(RetryOptions()).Failed(TransientError("x"))];
  EXPECT_GT(delays.size(), 10u);
}

TEST(RetryPolicyTest, DoesAsTheServerAsksWithinItsLimit) {
  RetryPolicy policy(
      {.attempts = 9, .first_delay = absl::Milliseconds(1), .longest_delay = absl::Seconds(30)});
  EXPECT_EQ(policy.Failed(TransientError("busy", absl::Seconds(7))), absl::Seconds(7));
  EXPECT_EQ(policy.Failed(TransientError("busy", absl::Hours(7))), absl::Seconds(30));
}

TEST(RetryPolicyTest, WhatWillNotPassIsNotTriedAgain) {
  RetryPolicy policy((RetryOptions()));
  EXPECT_FALSE(policy.Failed(absl::NotFoundError("no")).has_value());
  EXPECT_FALSE(policy.Failed(absl::DataLossError("no")).has_value());
}

TEST(RetryPolicyTest, ProgressBeginsTheCountAnew) {
  RetryPolicy policy({.attempts = 2, .first_delay = absl::Milliseconds(1)});
  for (int i = 0; i < 10; ++i) {
    policy.Progressed();
    EXPECT_TRUE(policy.Failed(TransientError("again")).has_value());
  }
  EXPECT_FALSE(policy.Failed(TransientError("again")).has_value());
}

TEST(ParseRetryAfterTest, TakesSecondsAndDates) {
  const absl::Time now = absl::FromUnixSeconds(784111770);  // Sun, 06 Nov 1994 08:49:30 GMT
  EXPECT_EQ(ParseRetryAfter("120", now), absl::Seconds(120));
  EXPECT_EQ(ParseRetryAfter("Sun, 06 Nov 1994 08:49:37 GMT", now), absl::Seconds(7));
  EXPECT_EQ(ParseRetryAfter("Sun, 06 Nov 1994 08:49:07 GMT", now), absl::ZeroDuration());
  EXPECT_EQ(ParseRetryAfter("soon", now), absl::ZeroDuration());
  EXPECT_EQ(ParseRetryAfter("-5", now), absl::ZeroDuration());
}

TEST(FileSelectionTest, TakesConfigurationTokenizerAndIndexOfTheTopFolder) {
  const std::vector<std::string> files = {"config.json",
                                          "generation_config.json",
                                          "config_sentence_transformers.json",
                                          "tokenizer.model",
                                          "tokenizer_config.json",
                                          "model.safetensors.index.json",
                                          "README.md",
                                          "original/config.json",
                                          "pytorch_model.bin.index.json",
                                          "model-00001-of-00002.safetensors"};
  EXPECT_THAT(SelectSmallFiles(files),
              UnorderedElementsAre("config.json", "generation_config.json",
                                   "config_sentence_transformers.json", "tokenizer.model",
                                   "tokenizer_config.json", "model.safetensors.index.json"));
}

TEST(FileSelectionTest, TakesTheWeightsOnce) {
  const std::vector<std::string> files = {"a.safetensors", "b.safetensors",
                                          "consolidated.safetensors", "pytorch_model.bin"};
  EXPECT_THAT(*SelectWeights(files, {"a.safetensors", "b.safetensors"}),
              ElementsAre("a.safetensors", "b.safetensors"));
  EXPECT_THAT(*SelectWeights({"model.safetensors", "model.fp16.safetensors"}, {}),
              ElementsAre("model.safetensors"));
}

TEST(FileSelectionTest, SaysWhatIsThereInsteadOfWeights) {
  EXPECT_THAT(SelectWeights({"config.json", "model.Q4.gguf"}, {}).status().message(),
              HasSubstr("neither model.safetensors nor model.safetensors.index.json (but "
                        "model.Q4.gguf)"));
  EXPECT_THAT(
      SelectWeights({"a.safetensors"}, {"a.safetensors", "b.safetensors"}).status().message(),
      HasSubstr("names b.safetensors, which the repository does not have"));
}

}  // namespace
}  // namespace marcoro
