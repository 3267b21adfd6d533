// Pulling from a hub, over a network and into a cache that do not behave.
#include <memory>
#include <random>

#include "absl/time/clock.h"
#include "deploy/hub/pull.h"
#include "gmock/gmock.h"
#include "tests/hub/pull_fixture.h"

namespace marcoro {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

TEST_F(PullTest, ABrokenConnectionIsResumedWhereItBroke) {
  CutWeights(/*times=*/1, /*bytes=*/1'234'567);
  const auto folder = Pull();
  ASSERT_TRUE(folder.ok()) << folder.status();
  EXPECT_THAT(WeightsRanges(), ElementsAre("", "bytes=1234567-"));
  EXPECT_EQ(ReadFile(*folder + "/model.safetensors"), Weights());
}

TEST_F(PullTest, AConnectionThatAlwaysBreaksIsGivenUpAfterSomeAttempts) {
  options_.retry.attempts = 4;
  CutWeights(/*times=*/1000, /*bytes=*/10);
  const absl::Status status = Failure(hub_);
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(WeightsRanges(), ElementsAre("", "bytes=10-", "bytes=20-", "bytes=30-"));
}

TEST_F(PullTest, AttemptsThatBringMuchAreNotCounted) {
  options_.retry.attempts = 2;
  CutWeights(/*times=*/2, /*bytes=*/1'100'000);
  EXPECT_TRUE(Pull().ok());
  EXPECT_THAT(WeightsRanges(), SizeIs(3));
}

TEST_F(PullTest, TheNextPullGoesOnWhereAFailedOneEnded) {
  options_.retry.attempts = 1;
  CutWeights(/*times=*/1, /*bytes=*/2'000'000);
  EXPECT_TRUE(absl::IsUnavailable(Failure(hub_)));
  EXPECT_EQ(fs::file_size(WeightsBlob().string() + ".incomplete"), 2'000'000u);
  const auto folder = Pull();
  ASSERT_TRUE(folder.ok()) << folder.status();
  EXPECT_THAT(WeightsRanges(), ElementsAre("", "bytes=2000000-"));
  EXPECT_EQ(ReadFile(*folder + "/model.safetensors"), Weights());
}

TEST_F(PullTest, AServerThatIgnoresRangesIsReadFromTheBeginning) {
  hub_.SetStorageFault([this, first = true](const HttpCall& call, HttpAnswer* answer) mutable {
    if (!IsForWeights(call)) return;
    *answer = {.body = Weights()};
    if (first) answer->cut_after = 500'000;
    first = false;
  });
  const auto folder = Pull();
  ASSERT_TRUE(folder.ok()) << folder.status();
  EXPECT_THAT(WeightsRanges(), ElementsAre("", "bytes=500000-"));
  EXPECT_EQ(ReadFile(*folder + "/model.safetensors"), Weights());
}

TEST_F(PullTest, AServerThatSendsAnotherRangeIsRefused) {
  CutWeights(1, 1000);
  options_.retry.attempts = 1;
  EXPECT_TRUE(absl::IsUnavailable(Failure(hub_)));
  hub_.SetStorageFault([this](const HttpCall& call, HttpAnswer* answer) {
    if (IsForWeights(call)) {
      answer->SetHeader("Content-Range", absl::StrCat("bytes 0-2998999/", Weights().size()));
    }
  });
  const absl::Status status = Failure(hub_);
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("'bytes 1000-2999999/3000000' was asked for"));
}

TEST_F(PullTest, AnAnswerOfAnotherLengthThanTheHubSaysIsRefused) {
  for (const size_t length : {2'999'999u, 3'000'001u}) {
    hub_.SetStorageFault([&](const HttpCall& call, HttpAnswer* answer) {
      if (IsForWeights(call)) answer->body.resize(length);
    });
    const absl::Status status = Failure(hub_);
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    EXPECT_THAT(status.message(),
                AllOf(HasSubstr("org/model/model.safetensors"),
                      HasSubstr(absl::StrCat(length, " bytes")), HasSubstr("3000000")));
  }
}

TEST_F(PullTest, AnEndlessAnswerIsCutOff) {
  hub_.SetStorageFault([&](const HttpCall& call, HttpAnswer* answer) {
    if (!IsForWeights(call)) return;
    answer->say_length = false;
    answer->body += std::string(1'000'000, 'x');
  });
  const absl::Status status = Failure(hub_);
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("more than the 3000000 bytes"));
}

TEST_F(PullTest, AnAnswerOfNoSaidLengthThatEndsEarlyIsABrokenConnection) {
  options_.retry.attempts = 2;
  hub_.SetStorageFault([&](const HttpCall& call, HttpAnswer* answer) {
    if (!IsForWeights(call)) return;
    answer->say_length = false;
    answer->body.resize(10);
  });
  EXPECT_TRUE(absl::IsUnavailable(Failure(hub_)));
}

TEST_F(PullTest, WrongContentsAreFetchedOnceMoreAndThenRefused) {
  hub_.SetStorageFault([&](const HttpCall& call, HttpAnswer* answer) {
    if (IsForWeights(call)) answer->body[1000] ^= 1;
  });
  const absl::Status status = Failure(hub_);
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(status.message(), AllOf(HasSubstr("model.safetensors"), HasSubstr("checksum"),
                                      HasSubstr(Sha256Hex(Weights()))));
  EXPECT_THAT(WeightsRanges(), ElementsAre("", ""));
  EXPECT_FALSE(fs::exists(WeightsBlob()));
}

TEST_F(PullTest, ASmallFileOfWrongContentsIsRefusedToo) {
  hub_.SetFault([](const HttpCall& call, HttpAnswer* answer) {
    if (call.method == "GET" && absl::EndsWith(call.target, "/config.json")) answer->body[0] = '[';
  });
  const absl::Status status = Failure(hub_);
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("config.json"));
}

TEST_F(PullTest, SpoiltRemainsOfAnEarlierPullAreThrownAway) {
  fs::create_directories(Folder() / "blobs");
  std::ofstream(WeightsBlob().string() + ".incomplete") << std::string(1000, 'x');
  const auto folder = Pull();
  ASSERT_TRUE(folder.ok()) << folder.status();
  EXPECT_THAT(WeightsRanges(), ElementsAre("bytes=1000-", ""));
  EXPECT_EQ(ReadFile(*folder + "/model.safetensors"), Weights());
}

TEST_F(PullTest, ABusyHubIsAskedAgainWhenItSays) {
  options_.retry.longest_delay = absl::Seconds(5);
  hub_.SetFault([busy = 2](const HttpCall& call, HttpAnswer* answer) mutable {
    if (!absl::StartsWith(call.target, "/api/") || busy-- <= 0) return;
    *answer = {.status = busy > 0 ? 503 : 429, .headers = {{"Retry-After", "1"}}};
  });
  const absl::Time start = absl::Now();
  EXPECT_TRUE(Pull().ok());
  EXPECT_GE(absl::Now() - start, absl::Seconds(2));
}

TEST_F(PullTest, ASilentConnectionIsGivenUpForAnother) {
  options_.stall_timeout = absl::Seconds(1);
  hub_.SetStorageFault([this, first = true](const HttpCall& call, HttpAnswer* answer) mutable {
    if (!IsForWeights(call)) return;
    if (first) answer->cut_after = 100'000;
    answer->stall = first;
    first = false;
  });
  EXPECT_TRUE(Pull().ok());
  EXPECT_THAT(WeightsRanges(), ElementsAre("", "bytes=100000-"));
}

TEST_F(PullTest, ARefusedTokenIsNamedByWhereItCameFrom) {
  for (const int status : {401, 403}) {
    hub_.SetFault([status](const HttpCall&, HttpAnswer* answer) { *answer = {.status = status}; });
    settings_.token = "hf_secret";
    EXPECT_THAT(Failure(hub_).message(),
                AllOf(HasSubstr("org/model"), HasSubstr(absl::StrCat("answers ", status)),
                      HasSubstr("the token of HF_TOKEN was sent")));
    settings_.token.clear();
    EXPECT_THAT(Failure(hub_).message(), HasSubstr("no token was sent"));
  }
}

TEST_F(PullTest, WhatTheHubDoesNotHaveIsNamed) {
  settings_.endpoint = hub_.url();
  const auto pulled = PullModel(settings_, *ParseHubName("org/other@v9"), options_);
  EXPECT_TRUE(absl::IsNotFound(pulled.status())) << pulled.status();
  EXPECT_THAT(pulled.status().message(), HasSubstr("org/other@v9"));
}

TEST_F(PullTest, AHubThatIsNotThereIsToldAfterSomeAttempts) {
  settings_.endpoint = "http://127.0.0.1:9";  // nobody listens on the discard port
  options_.retry.attempts = 3;
  const auto pulled = PullModel(settings_, *ParseHubName("org/model"), options_);
  EXPECT_TRUE(absl::IsUnavailable(pulled.status())) << pulled.status();
  EXPECT_THAT(pulled.status().message(), HasSubstr("127.0.0.1:9"));
}

TEST_F(PullTest, NamesThatLeadOutOfTheFolderAreRefused) {
  for (const std::string& name :
       {std::string("../config.json"), std::string("/etc/passwd"), std::string("a/../../b.json"),
        std::string("a\\b"), std::string("a\nb"), std::string("")}) {
    FakeRepository repository = NoiseRepository();
    repository.small[name] = "{}";
    FakeHub hub(repository);
    EXPECT_THAT(Failure(hub).message(), HasSubstr("leads out of its folder")) << name;
  }
}

TEST_F(PullTest, AnIndexThatNamesOtherFoldersIsRefused) {
  FakeRepository repository = NoiseRepository();
  repository.large.erase("model.safetensors");
  repository.small["model.safetensors.index.json"] =
      R"({"weight_map":{"a":"../../x.safetensors"}})";
  FakeHub hub(repository);
  EXPECT_THAT(Failure(hub).message(), HasSubstr("in the same folder"));
}

TEST_F(PullTest, AnswersThatAreNoneOfAHubAreRefused) {
  const std::vector<std::string> answers = {"",
                                            "[]",
                                            "<html>",
                                            R"({"sha":"main","siblings":[]})",
                                            R"({"siblings":[]})",
                                            R"({"sha":")" + std::string(40, 'a') + R"("})"};
  for (const std::string& answer_text : answers) {
    hub_.SetFault([&](const HttpCall&, HttpAnswer* answer) { *answer = {.body = answer_text}; });
    EXPECT_TRUE(absl::IsFailedPrecondition(Failure(hub_))) << answer_text;
  }
}

TEST_F(PullTest, SpoiltListingsAreReadOrRefusedButWriteNothingElsewhere) {
  options_.retry.attempts = 1;
  auto random = std::make_shared<std::mt19937>(20240608);
  hub_.SetFault([random](const HttpCall& call, HttpAnswer* answer) {
    if (!absl::StartsWith(call.target, "/api/")) return;
    for (int change = 0; change < 2; ++change) {
      answer->body[(*random)() % answer->body.size()] = "./\\\"{}[]:,ax\n"[(*random)() % 13];
    }
  });
  for (int round = 0; round < 100; ++round) {
    (void)Pull();
    for (const auto& entry : fs::directory_iterator(cache_.path())) {
      EXPECT_THAT(entry.path().filename(), AnyOf("models--org--model", ".locks"));
    }
  }
}

TEST_F(PullTest, FilesWithoutChecksumOrLengthAreRefused) {
  hub_.SetFault([](const HttpCall& call, HttpAnswer* answer) {
    if (absl::EndsWith(call.target, "/config.json")) answer->SetHeader("ETag", "\"../../x\"");
  });
  EXPECT_THAT(Failure(hub_).message(), HasSubstr("gives no checksum"));
  hub_.SetFault([](const HttpCall& call, HttpAnswer* answer) {
    if (absl::EndsWith(call.target, "/config.json")) answer->say_length = false;
  });
  EXPECT_THAT(Failure(hub_).message(), HasSubstr("does not say how long"));
}

TEST_F(PullTest, AnotherCommitThanTheListedOneIsRefused) {
  hub_.SetFault([](const HttpCall&, HttpAnswer* answer) {
    answer->SetHeader("X-Repo-Commit", std::string(40, 'e'));
  });
  EXPECT_THAT(Failure(hub_).message(), HasSubstr("tells of commit eeee"));
}

TEST_F(PullTest, RedirectsWithoutEndAreGivenUp) {
  hub_.SetFault([](const HttpCall& call, HttpAnswer* answer) {
    if (absl::EndsWith(call.target, "/config.json")) {
      *answer = {.status = 302, .headers = {{"Location", call.target}}};
    }
  });
  EXPECT_THAT(Failure(hub_).message(), HasSubstr("redirects more than"));
}

TEST_F(PullTest, RedirectsToOtherThanWebServersAreRefused) {
  hub_.SetFault([](const HttpCall& call, HttpAnswer* answer) {
    if (call.method == "GET" && absl::EndsWith(call.target, "/config.json")) {
      *answer = {.status = 302, .headers = {{"Location", "file:///etc/passwd"}}};
    }
  });
  EXPECT_THAT(Failure(hub_).message(), HasSubstr("redirects to what is no http"));
}

TEST_F(PullTest, ADiskThatCannotHoldItIsToldBeforeTheDownload) {
  options_.free_bytes = [](const std::string&) { return 2'999'999; };
  const absl::Status status = Failure(hub_);
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(status.message(), AllOf(HasSubstr("needs 3.0 MB more"), HasSubstr(cache_.path())));
  EXPECT_TRUE(WeightsRanges().empty());
  options_.free_bytes = [](const std::string&) { return 3'000'000; };
  EXPECT_TRUE(Pull().ok());
}

TEST_F(PullTest, FoldersThatLeadOutOfTheCacheAreRefused) {
  const TemporaryFolder elsewhere;
  fs::create_directories(Folder());
  fs::create_directory_symlink(elsewhere.path(), Folder() / "blobs");
  const absl::Status status = Failure(hub_);
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_TRUE(fs::is_empty(elsewhere.path()));
}

TEST_F(PullTest, ASnapshotThatLeadsOutOfTheCacheIsNotWrittenTo) {
  const TemporaryFolder elsewhere;
  fs::create_directories(Folder() / "snapshots");
  fs::create_directory_symlink(elsewhere.path(), Folder() / "snapshots" / Repository().commit);
  const absl::Status status = Pull().status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_TRUE(fs::is_empty(elsewhere.path()));
}

TEST_F(PullTest, ALinkInThePlaceOfADownloadIsNotWrittenThrough) {
  const TemporaryFolder elsewhere;
  std::ofstream(elsewhere.path() + "/victim") << "untouched";
  fs::create_directories(Folder() / "blobs");
  fs::create_symlink(elsewhere.path() + "/victim", WeightsBlob().string() + ".incomplete");
  EXPECT_THAT(Failure(hub_).message(), HasSubstr(".incomplete"));
  EXPECT_EQ(ReadFile(elsewhere.path() + "/victim"), "untouched");
}

TEST_F(PullTest, TheFirstFailureEndsTheOtherDownloadsSoon) {
  FakeRepository repository = NoiseRepository();
  repository.large = {{"one.safetensors", Noise(1000, 4)}, {"two.safetensors", Noise(1000, 5)}};
  repository.small["model.safetensors.index.json"] =
      R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})";
  FakeHub hub(repository);
  const std::string one = Sha256Hex(repository.large.at("one.safetensors"));
  hub.SetStorageFault([&](const HttpCall& call, HttpAnswer* answer) {
    if (absl::StrContains(call.target, one)) {
      answer->cut_after = 10;
      answer->stall = true;
    } else {
      *answer = {.status = 410};
    }
  });
  options_.stall_timeout = absl::Minutes(5);
  const absl::Time start = absl::Now();
  EXPECT_THAT(Failure(hub).message(), HasSubstr("answers 410"));
  EXPECT_LT(absl::Now() - start, absl::Minutes(1));
}

}  // namespace
}  // namespace marcoro
