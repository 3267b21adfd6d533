// The demo pair of tests/data/demo: a storyteller, a reader of short texts, and their merge, which
// does both jobs. What to expect is in losses.json: the losses that the pair's own script measured
// in PyTorch, on texts that no model has seen.
#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/e2e/cluster.h"

namespace marcoro {
namespace {

using nlohmann::json;

constexpr char kStoryteller[] = "storyteller";
constexpr char kReader[] = "reader";
constexpr char kRecipe[] = "recipe";

std::string DemoFile(const std::string& name) {
  return absl::StrCat(MARCORO_TEST_DATA, "/demo/", name);
}

std::vector<json> ReadLines(const std::string& name) {
  std::ifstream file(DemoFile(name));
  std::vector<json> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(json::parse(line));
  return lines;
}

struct Question {
  std::string prompt;  // as the chat template renders it
  std::string answer;
};

std::vector<Question> Questions() {
  std::vector<Question> questions;
  for (const json& line : ReadLines("questions.jsonl")) {
    const json& answer = line.at("choices").at(line.at("answer").get<size_t>());
    questions.push_back({line.at("prompt").get<std::string>(), answer.get<std::string>()});
  }
  return questions;
}

// Mean negative log-probability of a token.
struct Losses {
  double stories = 0;
  double questions = 0;  // of the answers
};

Losses ExpectedLosses(const std::string& model) {
  std::ifstream file(DemoFile("losses.json"));
  const json losses = json::parse(file).at(model);
  return {losses.at("stories").get<double>(), losses.at("questions").get<double>()};
}

class Mean {
 public:
  void Add(double value) { sum_ += value, ++count_; }
  double value() const { return sum_ / count_; }

 private:
  double sum_ = 0;
  int count_ = 0;
};

// A server of one of the three, at the precision and tensor-parallel degree that are asked for.
class DemoServer {
 public:
  explicit DemoServer(const std::string& model, const std::string& weights = "fp8", int tp = 1)
      : cluster_({.model = absl::StrCat("demo/", model, model == kRecipe ? ".yml" : ""),
                  .tp = tp,
                  .flags = {absl::StrCat("--weights=", weights)}}) {}

  bool ready() const { return cluster_.ready(); }
  std::string log() const { return cluster_.log(); }
  Client& client() { return cluster_.client(); }

  Losses Measure() {
    Mean stories, questions;
    for (const json& line : ReadLines("stories.jsonl")) {
      Score(line.at("text").get<std::string>(), 1, stories);  // all but <s>
    }
    for (const Question& question : Questions()) {
      Score(question.prompt + question.answer, CountTokens(question.prompt), questions);
    }
    return {stories.value(), questions.value()};
  }

 private:
  int CountTokens(const std::string& text) {
    v1::TokenizeRequest request;
    request.set_prompt(text);
    v1::TokenizeResponse response;
    const grpc::Status status = client().Tokenize(request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.token_ids_size();
  }

  // Adds the losses of the tokens from the first one asked for on.
  void Score(const std::string& text, int first, Mean& mean) {
    v1::ScoreRequest request;
    request.set_prompt(text);
    v1::ScoreResponse response;
    const grpc::Status status = client().Score(request, &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
    ASSERT_GT(response.tokens_size(), first);
    for (int i = first; i < response.tokens_size(); ++i) mean.Add(-response.tokens(i).logprob());
  }

  Cluster cluster_;
};

struct Served {
  const char* model;
  const char* weights;
  int tp;
  double tolerance;  // of a mean loss
};

void PrintTo(const Served& served, std::ostream* out) {
  *out << served.model << " " << served.weights << " tp " << served.tp;
}

class DemoLossTest : public ::testing::TestWithParam<Served> {};

TEST_P(DemoLossTest, EqualsWhatTheTrainingScriptMeasured) {
  const auto& [model, weights, tp, tolerance] = GetParam();
  DemoServer server(model, weights, tp);
  ASSERT_TRUE(server.ready()) << server.log();
  const Losses losses = server.Measure();
  const Losses expected = ExpectedLosses(model);
  EXPECT_NEAR(losses.stories, expected.stories, tolerance);
  EXPECT_NEAR(losses.questions, expected.questions, tolerance * std::max(1.0, expected.questions));
}

// BF16 weights leave BF16 activations as the only difference; FP8 moves every weight.
INSTANTIATE_TEST_SUITE_P(
    Models, DemoLossTest,
    ::testing::Values(Served{kStoryteller, "bf16", 1, 0.01}, Served{kReader, "bf16", 2, 0.01},
                      Served{kRecipe, "bf16", 1, 0.01}, Served{kRecipe, "fp8", 2, 0.05}),
    [](const auto& test) {
      return absl::StrCat(test.param.model, "_", test.param.weights, "_tp", test.param.tp);
    });

TEST(DemoTest, TheMergeDoesBothJobsNearlyAsWellAsTheParentOfEach) {
  std::map<std::string, Losses> losses;
  for (const char* model : {kStoryteller, kReader, kRecipe}) {
    DemoServer server(model);
    ASSERT_TRUE(server.ready()) << server.log();
    losses[model] = server.Measure();
    std::printf("%-12s  stories %.3f  questions %.3f\n", model, losses[model].stories,
                losses[model].questions);
  }
  const Losses& storyteller = losses[kStoryteller];
  const Losses& reader = losses[kReader];
  const Losses& merge = losses[kRecipe];
  ASSERT_GT(reader.stories, 1.5 * storyteller.stories) << "the parents are no specialists";
  ASSERT_GT(storyteller.questions, 1.5 * reader.questions) << "the parents are no specialists";
  // At most a third of the way from the parent that was trained for it to the other.
  EXPECT_LT(merge.stories - storyteller.stories, (reader.stories - storyteller.stories) / 3);
  EXPECT_LT(merge.questions - reader.questions, (storyteller.questions - reader.questions) / 3);
}

TEST(DemoTest, TheMergeAnswersQuestions) {
  DemoServer server(kRecipe);
  ASSERT_TRUE(server.ready()) << server.log();
  int right = 0;
  const std::vector<Question> questions = Questions();
  for (const Question& question : questions) {
    v1::GenerateRequest request = Greedy(question.prompt, 24);
    request.set_ignore_eos(false);
    const Reply reply = server.client().Generate(request);
    ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
    right += reply.response.choices(0).text() == question.answer;
  }
  EXPECT_GE(right, 0.8 * static_cast<double>(questions.size()))
      << right << " of " << questions.size();
}

// Letters only, in lower case.
std::vector<std::string> Words(std::string text) {
  for (char& letter : text) {
    letter = std::isalpha(static_cast<unsigned char>(letter)) != 0
                 ? static_cast<char>(std::tolower(letter))
                 : ' ';
  }
  return absl::StrSplit(text, ' ', absl::SkipEmpty());
}

TEST(DemoTest, TheMergeTellsStoriesInEnglishThatComeToAnEnd) {
  // Every word of the corpus stands in the lists and patterns that it is made from.
  std::ifstream corpus(DemoFile("corpus.py"));
  const std::vector<std::string> words_of_corpus =
      Words({std::istreambuf_iterator<char>(corpus), std::istreambuf_iterator<char>()});
  const std::set<std::string> known(words_of_corpus.begin(), words_of_corpus.end());
  ASSERT_GE(known.size(), 500u);
  DemoServer server(kRecipe);
  ASSERT_TRUE(server.ready()) << server.log();
  Mean knows;
  for (uint64_t seed = 0; seed < 8; ++seed) {
    v1::GenerateRequest request = Sampled("Once upon a time", 400, seed);
    request.set_ignore_eos(false);
    request.set_temperature(seed == 0 ? 0.0f : 0.7f);
    const Reply reply = server.client().Generate(request);
    ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
    const v1::Choice& story = reply.response.choices(0);
    EXPECT_EQ(story.finish_reason(), v1::FINISH_REASON_STOP) << story.text();
    const std::vector<std::string> words = Words(story.text());
    EXPECT_GE(words.size(), 60u) << story.text();
    for (const std::string& word : words) knows.Add(known.contains(word));
  }
  EXPECT_GE(knows.value(), 0.98) << "of the words are the corpus's";
}

}  // namespace
}  // namespace marcoro
