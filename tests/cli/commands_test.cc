// The real commands against a real server.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/e2e/cluster.h"

namespace marcoro {
namespace {

using ::testing::HasSubstr;

using Json = nlohmann::json;

class CommandsTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { cluster_ = new Cluster({.model = "tiny"}); }
  static void TearDownTestSuite() {
    delete cluster_;
    cluster_ = nullptr;
  }
  void SetUp() override { ASSERT_TRUE(cluster_->ready()) << cluster_->log(); }

  static Finished Run(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), Program("marcoro"));
    arguments.push_back("--address=" + cluster_->address());
    return RunToEnd(std::move(arguments));
  }
  // With that text as standard input.
  static Finished Piped(const std::string& input, const std::string& arguments) {
    return RunToEnd({"/bin/sh", "-c",
                     absl::StrCat("printf '%b' '", input, "' | ", Program("marcoro"), " ",
                                  arguments, " --address=", cluster_->address())});
  }
  static Json Parsed(const Finished& run) {
    EXPECT_EQ(run.exit_code, 0) << run.err;
    return Json::parse(run.out, nullptr, /*allow_exceptions=*/false);
  }

  static Cluster* cluster_;
};

Cluster* CommandsTest::cluster_ = nullptr;

TEST_F(CommandsTest, GenerateWritesTheSameTextStreamedAndWhole) {
  const std::vector<std::string> arguments = {"generate", "--temperature=0", "--max-tokens=24",
                                              "Returns the"};
  std::vector<std::string> whole = arguments;
  whole.push_back("--no-stream");
  const Finished streamed = Run(arguments);
  EXPECT_EQ(streamed.exit_code, 0) << streamed.err;
  EXPECT_EQ(streamed.err, "");
  EXPECT_GT(streamed.out.size(), 10u);
  const std::string text = Run(whole).out;
  EXPECT_TRUE(streamed.out == text || streamed.out + "\n" == text) << streamed.out << "\n" << text;
}

TEST_F(CommandsTest, GenerateTakesThePromptFromStandardInput) {
  const Finished argument = Run({"generate", "--temperature=0", "--max-tokens=8", "Returns the"});
  const Finished piped = Piped("Returns the", "generate --temperature=0 --max-tokens=8");
  EXPECT_EQ(piped.exit_code, 0) << piped.err;
  EXPECT_EQ(piped.out, argument.out);
}

TEST_F(CommandsTest, GenerateWritesJson) {
  const Json response = Parsed(Run({"generate", "--json", "--no-stream", "--chat", "--seed=9",
                                    "--max-tokens=5", "--ignore-eos", "--logprobs=2", "hello"}));
  EXPECT_EQ(response["seed"], "9");  // 64 bit numbers are texts in protobuf's JSON
  EXPECT_EQ(response["usage"]["generated_tokens"], 5);
  EXPECT_EQ(response["choices"][0]["logprobs"].size(), 5u);
  EXPECT_EQ(response["choices"][0]["logprobs"][0]["top"].size(), 2u);
  EXPECT_EQ(response["choices"][0]["finish_reason"], "FINISH_REASON_LENGTH");
}

TEST_F(CommandsTest, GenerateShowsEachChoiceAndTokenTables) {
  const Finished choices = Run({"generate", "--n=2", "--max-tokens=4", "hi"});
  EXPECT_THAT(choices.out, HasSubstr("--- choice 0\n"));
  EXPECT_THAT(choices.out, HasSubstr("--- choice 1\n"));
  const Finished table =
      Run({"generate", "--max-tokens=4", "--ignore-eos", "--logprobs=1", "--stats", "hi"});
  EXPECT_THAT(table.out, HasSubstr("logprob"));
  EXPECT_THAT(table.err, HasSubstr("generated 4"));
}

TEST_F(CommandsTest, AServersRefusalIsOneLineWithReasonAndFields) {
  const Finished run = Run({"generate", "--temperature=1000", "--top-p=3", "hi"});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_EQ(run.out, "");
  EXPECT_EQ(run.err.rfind("marcoro generate: INVALID_ARGUMENT: temperature: ", 0), 0u) << run.err;
  EXPECT_THAT(run.err, HasSubstr("reason INVALID_FIELD"));
  EXPECT_THAT(run.err, HasSubstr("top_p: "));
  EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
}

TEST_F(CommandsTest, ATimeoutIsAFailure) {
  const Finished run = Run({"generate", "--timeout=1ms", "--max-tokens=900", "--ignore-eos", "hi"});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("DEADLINE_EXCEEDED"));
}

TEST_F(CommandsTest, ScoreSumsWhatItsTableShows) {
  const Json response = Parsed(Run({"score", "--json", "Returns the value"}));
  double sum = 0;
  int tokens = 0;
  for (const Json& token : response["tokens"]) {
    if (!token.contains("logprob")) continue;
    sum += token["logprob"].get<double>();
    ++tokens;
  }
  EXPECT_EQ(response["tokens"].size(), static_cast<size_t>(tokens) + 1);  // <s> has none
  EXPECT_NEAR(response["logprob_sum"].get<double>(), sum, 1e-4);
  EXPECT_NEAR(response["perplexity"].get<double>(), std::exp(-sum / tokens), 1e-3);
  const Finished table = Run({"score", "--top=2", "Returns the value"});
  EXPECT_THAT(table.out, HasSubstr(absl::StrCat("over ", tokens, " tokens, perplexity")));
}

TEST_F(CommandsTest, ScoreReadsFilesAndStandardInput) {
  const std::string path = ::testing::TempDir() + "/marcoro_score_input.txt";
  std::ofstream(path) << "Returns the value";
  const Finished argument = Run({"score", "Returns the value"});
  EXPECT_EQ(Run({"score", "--file=" + path}).out, argument.out);
  EXPECT_EQ(Piped("Returns the value", "score").out, argument.out);
  std::filesystem::remove(path);
}

TEST_F(CommandsTest, ChatAnswersEachLineOfAPipeInContext) {
  const std::string flags = "chat --max-tokens=8 --temperature=0 --ignore-eos";
  const Finished twice = Piped("hello\\nhello\\n", flags);
  EXPECT_EQ(twice.exit_code, 0) << twice.err;
  const Finished once = Piped("hello", flags);
  EXPECT_EQ(once.exit_code, 0) << once.err;
  EXPECT_GT(twice.out.size(), once.out.size());
  EXPECT_EQ(twice.out.rfind(once.out, 0), 0u);
  EXPECT_NE(twice.out, once.out + once.out);  // the second answer knows of the first
}

TEST_F(CommandsTest, ChatForgetsOnResetAndEndsOnQuit) {
  const std::string flags = "chat --max-tokens=8 --temperature=0 --ignore-eos";
  const Finished once = Piped("hello", flags);
  const Finished reset = Piped("hello\\n/reset\\nhello\\n/quit\\nnever\\n", flags);
  EXPECT_EQ(reset.exit_code, 0) << reset.err;
  EXPECT_EQ(reset.out, once.out + once.out);
}

TEST_F(CommandsTest, ChatDropsTheOldestTurnsWithANotice) {
  // The context of `tiny` is 1024 tokens; answers of 300 fill it.
  const Finished run = Piped("a\\nb\\nc\\nd\\ne\\n", "chat --max-tokens=300 --ignore-eos --seed=1");
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.err, HasSubstr("no longer fit the context and were dropped"));
}

TEST_F(CommandsTest, ChatSaysWhatTheServerRefuses) {
  const Finished run = Piped("hello\\n", "chat --temperature=1000");
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("INVALID_ARGUMENT: temperature"));
}

TEST_F(CommandsTest, BenchInAClosedLoopCountsEveryTokenItAskedFor) {
  const Json report =
      Parsed(Run({"bench", "--json=-", "--requests=20", "--concurrency=4", "--warmup=2",
                  "--prompt-tokens=uniform:5:40", "--output-tokens=16"}));
  EXPECT_EQ(report["succeeded"], 20);
  EXPECT_EQ(report["failed"], 0);
  EXPECT_EQ(report["output_tokens"], 20 * 16);
  EXPECT_EQ(report["first_token_seconds"]["count"], 20);
  EXPECT_EQ(report["end_to_end_seconds"]["count"], 20);
  EXPECT_GE(report["end_to_end_seconds"]["mean"], report["first_token_seconds"]["mean"]);
  EXPECT_LE(report["inter_token_seconds"]["p50"], report["inter_token_seconds"]["max"]);
}

TEST_F(CommandsTest, BenchInAnOpenLoopTellsWhatItCouldNotSend) {
  const Json report =
      Parsed(Run({"bench", "--json=-", "--requests=60", "--rate=2000", "--max-in-flight=1",
                  "--prompt-tokens=64", "--output-tokens=64"}));
  EXPECT_GT(report["not_sent"].get<int>(), 0);
  EXPECT_EQ(report["succeeded"].get<int>() + report["not_sent"].get<int>(), 60);
}

TEST_F(CommandsTest, BenchCountsErrorsByCode) {
  const Finished run = Run({"bench", "--json=-", "--requests=3", "--concurrency=1",
                            "--temperature=1000", "--output-tokens=4"});
  EXPECT_EQ(run.exit_code, 1);
  const Json report = Json::parse(run.out, nullptr, /*allow_exceptions=*/false);
  EXPECT_EQ(report["errors"]["INVALID_ARGUMENT"], 3);
}

TEST_F(CommandsTest, BenchComparesWithTheMachinesLimits) {
  const std::string path = ::testing::TempDir() + "/marcoro_bench.json";
  const Finished run = Run({"bench", "--roofline", "--json=" + path, "--requests=2",
                            "--concurrency=1", "--prompt-tokens=8", "--output-tokens=32"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("decode ratio"));
  const Json roofline = Json::parse(std::ifstream(path), nullptr, false)["roofline"];
  // 2 layers * (64 * 192 + 3 * 64 * 176) in FP8 and the head's 1024 * 64 in BF16.
  EXPECT_EQ(roofline["weight_bytes"], 2 * (64 * 192 + 3 * 64 * 176) + 2 * 1024 * 64);
  EXPECT_GT(roofline["decode_ratio"].get<double>(), 0);
  std::filesystem::remove(path);
}

// Every round makes its connections anew. gRPC's client aborts the process if the last of them goes
// on one of its own threads: of 16 rounds that happened in about every eighth run.
TEST_F(CommandsTest, BenchOutlivesTheConnectionsOfManyRounds) {
  for (int run = 0; run < 3; ++run) {
    const Finished finished = Run({"bench", "--roofline", "--json=-", "--requests=64",
                                   "--concurrency=4", "--prompt-tokens=4", "--output-tokens=1"});
    ASSERT_EQ(finished.exit_code, 0) << finished.err;
    const Json report = Json::parse(finished.out, nullptr, /*allow_exceptions=*/false);
    EXPECT_EQ(report["succeeded"], 64);
    EXPECT_EQ(report["roofline"]["rounds"].size(), 16u);
  }
}

}  // namespace
}  // namespace marcoro
