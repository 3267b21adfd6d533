// Evaluation against a server whose tokens and log-probabilities are so simple that every expected
// number is arithmetic by hand: a token for each character, but one for "ab"; and each token's
// log-probability is minus its place in the request.
#include "deploy/cli/evaluation.h"

#include <grpcpp/grpcpp.h>

#include <map>
#include <memory>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "marcoro/v1/inference.grpc.pb.h"
#include "marcoro/v1/model.grpc.pb.h"

namespace marcoro {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::FieldsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

constexpr uint32_t kBos = 1;
constexpr uint32_t kJoined = 1000;  // "ab"

class SimpleServer : public v1::InferenceService::Service, public v1::ModelService::Service {
 public:
  SimpleServer() {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(static_cast<v1::InferenceService::Service*>(this));
    builder.RegisterService(static_cast<v1::ModelService::Service*>(this));
    server_ = builder.BuildAndStart();
    address_ = absl::StrCat("127.0.0.1:", port);
  }
  ~SimpleServer() override { server_->Shutdown(); }
  SimpleServer(const SimpleServer&) = delete;
  SimpleServer& operator=(const SimpleServer&) = delete;

  const std::string& address() const { return address_; }
  // Log-probabilities of some tokens, wherever they stand. Before the first call.
  std::map<uint32_t, double> logprobs;
  bool has_bos = true;

  grpc::Status Tokenize(grpc::ServerContext*, const v1::TokenizeRequest* request,
                        v1::TokenizeResponse* response) override {
    const bool bos = request->has_add_bos() ? request->add_bos() : has_bos;
    for (const uint32_t id : Encode(request->prompt(), bos)) response->add_token_ids(id);
    return grpc::Status::OK;
  }

  grpc::Status Score(grpc::ServerContext*, const v1::ScoreRequest* request,
                     v1::ScoreResponse* response) override {
    std::vector<uint32_t> ids(request->token_ids().ids().begin(), request->token_ids().ids().end());
    const bool bos = request->has_add_bos() ? request->add_bos() : has_bos;
    if (request->has_prompt()) ids = Encode(request->prompt(), bos);
    if (ids.size() > 100) return {grpc::StatusCode::INVALID_ARGUMENT, "too long"};
    for (size_t i = 0; i < ids.size(); ++i) {
      v1::TokenLogprob* const token = response->add_tokens();
      token->set_token_id(ids[i]);
      const auto known = logprobs.find(ids[i]);
      const double place = -static_cast<double>(i);
      if (i > 0)
        token->set_logprob(static_cast<float>(known == logprobs.end() ? place : known->second));
    }
    return grpc::Status::OK;
  }

  grpc::Status GetModel(grpc::ServerContext*, const v1::GetModelRequest*,
                        v1::GetModelResponse* response) override {
    response->mutable_model()->set_name("simple");
    response->mutable_model()->set_context_length(100);
    return grpc::Status::OK;
  }

 private:
  static std::vector<uint32_t> Encode(const std::string& text, bool bos) {
    std::vector<uint32_t> ids;
    if (bos) ids.push_back(kBos);
    for (size_t i = 0; i < text.size(); ++i) {
      const bool joined = text.substr(i, 2) == "ab";
      ids.push_back(joined ? kJoined : static_cast<unsigned char>(text[i]));
      if (joined) ++i;
    }
    return ids;
  }

  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

class EvaluationTest : public testing::Test {
 protected:
  absl::StatusOr<PerplexityResult> Perplexity(const std::string& text, int context, int stride) {
    Client client({.address = server_.address()});
    return EvaluatePerplexity(client, text, {.context = context, .stride = stride});
  }
  absl::StatusOr<AccuracyResult> Accuracy(const std::vector<EvalQuestion>& questions) {
    Client client({.address = server_.address()});
    return EvaluateChoices(client, questions, EvaluationOptions());
  }
  static EvalQuestion Question(std::string prompt, std::vector<std::string> choices,
                               size_t answer) {
    return {
        .line = 7, .prompt = std::move(prompt), .choices = std::move(choices), .answer = answer};
  }

  SimpleServer server_;
};

TEST(PlanWindowsTest, EveryTokenCountsOnceInTheFirstWindowThatHasIt) {
  EXPECT_THAT(PlanWindows(10, 4, 2), ElementsAre(FieldsAre(0, 4, 0), FieldsAre(2, 6, 4),
                                                 FieldsAre(4, 8, 6), FieldsAre(6, 10, 8)));
  EXPECT_THAT(PlanWindows(7, 4, 3), ElementsAre(FieldsAre(0, 4, 0), FieldsAre(3, 7, 4)));
  EXPECT_THAT(PlanWindows(5, 4, 4), ElementsAre(FieldsAre(0, 4, 0), FieldsAre(4, 5, 4)));
  EXPECT_THAT(PlanWindows(3, 4, 1), ElementsAre(FieldsAre(0, 3, 0)));
  EXPECT_TRUE(PlanWindows(0, 4, 2).empty());
}

TEST_F(EvaluationTest, AShortTextIsOneWindow) {
  const auto result = Perplexity("wxyz", 100, 50);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->tokens, 4u);
  EXPECT_DOUBLE_EQ(result->logprob_sum, -(1 + 2 + 3 + 4));
  EXPECT_DOUBLE_EQ(result->perplexity(), std::exp(2.5));
  EXPECT_DOUBLE_EQ(result->bits_per_byte(), 10 / std::log(2.0) / 4);
}

TEST_F(EvaluationTest, ALongTextIsSummedOverWindowsByTokens) {
  // Windows of <s> and four tokens: the first counts places 1 to 4, the others the last two.
  const auto result = Perplexity("wxyzwxyzwx", 5, 2);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->tokens, 10u);
  EXPECT_DOUBLE_EQ(result->logprob_sum, -(1 + 2 + 3 + 4) - 3 * (3 + 4));
}

TEST_F(EvaluationTest, TellsHowManyTokensOrQuestionsAreDone) {
  Client client({.address = server_.address()});
  std::vector<std::pair<uint64_t, uint64_t>> told;
  EvaluationOptions options = {.context = 5, .stride = 2, .concurrency = 1};
  options.progress = [&told](uint64_t done, uint64_t total) { told.emplace_back(done, total); };
  ASSERT_TRUE(EvaluatePerplexity(client, "wxyzwxyzwx", options).ok());
  EXPECT_THAT(told, ElementsAre(Pair(4, 10), Pair(6, 10), Pair(8, 10), Pair(10, 10)));
  told.clear();
  options.concurrency = 2;
  const EvalQuestion question = Question("pp", {"x", "y"}, 0);
  ASSERT_TRUE(EvaluateChoices(client, {question, question, question}, options).ok());
  EXPECT_THAT(told, ElementsAre(Pair(1, 3), Pair(2, 3), Pair(3, 3)));
}

TEST_F(EvaluationTest, WithoutABeginningTokenTheFirstTokenDoesNotCount) {
  server_.has_bos = false;
  const auto result = Perplexity("wxyz", 100, 50);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->tokens, 3u);
  EXPECT_DOUBLE_EQ(result->logprob_sum, -(1 + 2 + 3));
  EXPECT_FALSE(Perplexity("w", 100, 50).ok());
}

TEST_F(EvaluationTest, AContextThatTheModelDoesNotHaveIsRefused) {
  EXPECT_THAT(Perplexity("wxyz", 101, 50).status().message(),
              AllOf(HasSubstr("--context=101"), HasSubstr("context of 100")));
  EXPECT_THAT(Perplexity("wxyz", 4, 4).status().message(), HasSubstr("--stride=4"));
  EXPECT_FALSE(Perplexity("", 100, 50).ok());
}

TEST(CommonPrefixTest, CountsEqualTokensAtTheBeginning) {
  EXPECT_EQ(CommonPrefix({1, 2, 3}, {1, 2, 4}), 2u);
  EXPECT_EQ(CommonPrefix({1, 2}, {1, 2, 4}), 2u);
  EXPECT_EQ(CommonPrefix({}, {1}), 0u);
}

TEST(ChoiceScoresTest, OfEqualScoresTheFirstIsTaken) {
  const ChoiceScores scores = {.sums = {-3, -2, -2}};
  EXPECT_EQ(scores.Best(), 1u);
  EXPECT_EQ(scores.BestPerByte({"123456", "1", "1234"}), 0u);  // -0.5, -2, -0.5
}

TEST_F(EvaluationTest, TheLargestSumBehindThePromptIsChosen) {
  server_.logprobs = {{'p', -1000}, {'x', -1}, {'y', -3}};
  const auto result = Accuracy({Question("pp", {"y", "x"}, 1),     // -3, -1
                                Question("pp", {"xx", "y"}, 0),    // -2, -3
                                Question("pp", {"xxxx", "y"}, 0),  // -4, -3; per byte -1, -3
                                Question("pp", {"x", "xx"}, 0)});  // -1, -2; per byte -1, -1
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->questions, 4u);
  EXPECT_EQ(result->right, 3u);
  EXPECT_EQ(result->right_normalized, 4u);
  EXPECT_DOUBLE_EQ(result->accuracy(), 0.75);
  EXPECT_DOUBLE_EQ(result->standard_error(), std::sqrt(0.75 * 0.25 / 4));
}

TEST_F(EvaluationTest, TokensThatJoinPromptAndChoiceBelongToAllChoices) {
  // "a" + "b" is one token, so "a" counts for the other choice too: -5 against -2 - 4.
  server_.logprobs = {{'a', -2}, {'b', -1}, {'c', -4}, {kJoined, -5}};
  EXPECT_EQ(Accuracy({Question("pa", {"b", "c"}, 0)})->right, 1u);
  // Nothing joins: -1 against -4 behind "pd".
  EXPECT_EQ(Accuracy({Question("pd", {"b", "c"}, 0)})->right, 1u);
  // Without counting "a" the second choice would have won with -4 against -5.
  EXPECT_EQ(Accuracy({Question("pa", {"b", "c"}, 1)})->right, 0u);
}

TEST_F(EvaluationTest, AServersRefusalNamesTheLine) {
  const auto result = Accuracy({Question(std::string(100, 'p'), {"x", "y"}, 0)});
  EXPECT_THAT(result.status().message(), AllOf(HasSubstr("line 7: "), HasSubstr("too long")));
}

TEST(ParseQuestionsTest, ReadsOneALine) {
  const auto questions = ParseQuestions(
      "{\"prompt\":\"p\",\"choices\":[\"a\",\"b\"],\"answer\":1,\"id\":9}\n"
      "\n"
      "{\"prompt\":\"\",\"choices\":[\"\\u00e4\",\"b\",\"c\"],\"answer\":0}\r\n",
      "q.jsonl");
  ASSERT_TRUE(questions.ok()) << questions.status();
  ASSERT_EQ(questions->size(), 2u);
  EXPECT_EQ((*questions)[0].prompt, "p");
  EXPECT_THAT((*questions)[0].choices, ElementsAre("a", "b"));
  EXPECT_EQ((*questions)[0].answer, 1u);
  EXPECT_EQ((*questions)[1].line, 3u);
  EXPECT_THAT((*questions)[1].choices, ElementsAre("ä", "b", "c"));
}

TEST(ParseQuestionsTest, ABadLineIsNamedByItsNumber) {
  const std::string good = R"({"prompt":"p","choices":["a","b"],"answer":1})";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"{", "is no JSON object"},
      {"[1]", "is no JSON object"},
      {R"({"choices":["a","b"],"answer":1})", "\"prompt\""},
      {R"({"prompt":5,"choices":["a","b"],"answer":1})", "\"prompt\""},
      {R"({"prompt":"p","answer":1})", "\"choices\""},
      {R"({"prompt":"p","choices":["a"],"answer":0})", "has 1 choices"},
      {R"({"prompt":"p","choices":["a",""],"answer":0})", "choice 1"},
      {R"({"prompt":"p","choices":["a",2],"answer":0})", "choice 1"},
      {R"({"prompt":"p","choices":["a","b"]})", "\"answer\""},
      {R"({"prompt":"p","choices":["a","b"],"answer":2})", "0 to 1"},
      {R"({"prompt":"p","choices":["a","b"],"answer":-1})", "0 to 1"},
      {R"({"prompt":"p","choices":["a","b"],"answer":"a"})", "0 to 1"},
      {std::string(kMaxQuestionBytes + 1, 'x'), "longer than"}};
  for (const auto& [line, problem] : cases) {
    const auto questions = ParseQuestions(good + "\n" + line + "\n" + good, "q.jsonl");
    EXPECT_TRUE(absl::IsInvalidArgument(questions.status())) << line;
    EXPECT_THAT(questions.status().message(), AllOf(HasSubstr("q.jsonl:2: "), HasSubstr(problem)));
  }
  EXPECT_THAT(ParseQuestions("\n\n", "q.jsonl").status().message(), HasSubstr("no questions"));
}

TEST(ParseQuestionsTest, SpoiltLinesAreReadOrRefused) {
  const std::string good = R"({"prompt":"p","choices":["a","b"],"answer":1})";
  std::mt19937 random(20240609);
  for (int round = 0; round < 5000; ++round) {
    std::string text = good;
    for (int change = 0; change < 2; ++change) {
      text[random() % text.size()] = static_cast<char>(random() % 128);
    }
    const auto questions = ParseQuestions(text, "q.jsonl");
    if (!questions.ok()) continue;
    for (const EvalQuestion& question : *questions) {
      EXPECT_LT(question.answer, question.choices.size()) << text;
    }
  }
}

}  // namespace
}  // namespace marcoro
