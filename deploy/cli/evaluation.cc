#include "deploy/cli/evaluation.h"

#include <algorithm>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "deploy/cli/parallel_calls.h"
#include "deploy/cli/score_totals.h"

namespace marcoro {
namespace {

using Ids = std::vector<uint32_t>;

// Counts what calls on several threads have done.
class Done {
 public:
  Done(const EvaluationOptions& options, uint64_t total) : options_(options), total_(total) {}

  void Add(uint64_t count) {
    if (!options_.progress) return;
    const absl::MutexLock lock(&mutex_);
    done_ += count;
    options_.progress(done_, total_);
  }

 private:
  const EvaluationOptions& options_;
  const uint64_t total_;
  absl::Mutex mutex_;
  uint64_t done_ ABSL_GUARDED_BY(mutex_) = 0;
};

absl::StatusOr<Ids> Tokenize(Client& client, const std::string& text, std::optional<bool> add_bos,
                             const EvaluationOptions& options) {
  v1::TokenizeRequest request;
  request.set_prompt(text);
  if (add_bos) request.set_add_bos(*add_bos);
  request.set_parse_special_tokens(options.parse_special_tokens);
  const absl::StatusOr<v1::TokenizeResponse> response = client.Tokenize(request);
  if (!response.ok()) return response.status();
  return Ids(response->token_ids().begin(), response->token_ids().end());
}

// Of the window's tokens that count.
absl::StatusOr<ScoreTotals> ScoreWindow(Client& client, const Ids& bos, const Ids& tokens,
                                        const EvalWindow& window) {
  v1::ScoreRequest request;
  auto* const ids = request.mutable_token_ids()->mutable_ids();
  ids->Add(bos.begin(), bos.end());
  ids->Add(tokens.begin() + static_cast<ptrdiff_t>(window.begin),
           tokens.begin() + static_cast<ptrdiff_t>(window.end));
  absl::StatusOr<v1::ScoreResponse> response = client.Score(request);
  if (!response.ok()) return response.status();
  const int before = static_cast<int>(bos.size() + window.scored - window.begin);
  response->mutable_tokens()->DeleteSubrange(0, std::min(before, response->tokens_size()));
  return TotalsOf(response->tokens());
}

absl::Status CheckContext(Client& client, const EvaluationOptions& options, size_t text_tokens) {
  const absl::StatusOr<v1::Model> model = client.GetModel();
  if (!model.ok()) return model.status();
  if (static_cast<uint32_t>(options.context) > model->context_length()) {
    return absl::InvalidArgumentError(absl::StrCat("--context=", options.context, ": model ",
                                                   model->name(), " has a context of ",
                                                   model->context_length(), " tokens"));
  }
  if (static_cast<size_t>(options.stride) <= text_tokens) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "--stride=", options.stride, ": a window has only ", text_tokens, " tokens of the text"));
}

// A choice behind its prompt.
struct ScoredChoice {
  Ids ids;
  std::vector<double> logprobs;  // 0 for a first token, which has none
};

absl::StatusOr<ScoredChoice> ScoreChoice(Client& client, const std::string& text,
                                         const EvaluationOptions& options) {
  v1::ScoreRequest request;
  request.set_prompt(text);
  if (options.add_bos) request.set_add_bos(*options.add_bos);
  request.set_parse_special_tokens(options.parse_special_tokens);
  const absl::StatusOr<v1::ScoreResponse> response = client.Score(request);
  if (!response.ok()) return response.status();
  ScoredChoice scored;
  for (const v1::TokenLogprob& token : response->tokens()) {
    scored.ids.push_back(token.token_id());
    scored.logprobs.push_back(token.logprob());
  }
  return scored;
}

absl::StatusOr<ChoiceScores> ScoreChoices(Client& client, const EvalQuestion& question,
                                          const EvaluationOptions& options) {
  const absl::StatusOr<Ids> prompt = Tokenize(client, question.prompt, options.add_bos, options);
  if (!prompt.ok()) return prompt.status();
  std::vector<ScoredChoice> scored;
  size_t shared = prompt->size();
  for (const std::string& choice : question.choices) {
    auto one = ScoreChoice(client, question.prompt + choice, options);
    if (!one.ok()) return one.status();
    shared = std::min(shared, CommonPrefix(*prompt, one->ids));
    scored.push_back(*std::move(one));
  }
  ChoiceScores scores;
  for (const ScoredChoice& choice : scored) {
    if (choice.ids.size() <= shared) {
      return absl::InvalidArgumentError(
          absl::StrCat("choice ", scores.sums.size(), " adds no token to the prompt"));
    }
    double sum = 0;
    for (size_t i = shared; i < choice.ids.size(); ++i) sum += choice.logprobs[i];
    scores.sums.push_back(sum);
  }
  return scores;
}

}  // namespace

std::vector<EvalWindow> PlanWindows(size_t tokens, size_t length, size_t stride) {
  std::vector<EvalWindow> windows;
  size_t scored = 0;
  for (size_t begin = 0; scored < tokens; begin += stride) {
    const size_t end = std::min(begin + length, tokens);
    windows.push_back({.begin = begin, .end = end, .scored = scored});
    scored = end;
  }
  return windows;
}

absl::StatusOr<PerplexityResult> EvaluatePerplexity(Client& client, const std::string& text,
                                                    const EvaluationOptions& options) {
  const absl::StatusOr<Ids> bos = Tokenize(client, "", options.add_bos, options);
  if (!bos.ok()) return bos.status();
  const size_t length = static_cast<size_t>(options.context) - bos->size();
  if (absl::Status status = CheckContext(client, options, length); !status.ok()) return status;
  const absl::StatusOr<Ids> tokens = Tokenize(client, text, /*add_bos=*/false, options);
  if (!tokens.ok()) return tokens.status();
  const auto windows = PlanWindows(tokens->size(), length, static_cast<size_t>(options.stride));
  std::vector<ScoreTotals> totals(windows.size());
  Done done(options, tokens->size());
  const absl::Status status = CallInParallel(windows.size(), options.concurrency, [&](size_t i) {
    absl::StatusOr<ScoreTotals> window = ScoreWindow(client, *bos, *tokens, windows[i]);
    if (!window.ok()) return window.status();
    totals[i] = *window;
    done.Add(windows[i].end - windows[i].scored);
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  PerplexityResult result;
  result.bytes = text.size();
  for (const ScoreTotals& window : totals) {  // in one order, so that the sum is always the same
    result.logprob_sum += window.sum;
    result.tokens += static_cast<uint64_t>(window.tokens);
  }
  if (result.tokens > 0) return result;
  return absl::InvalidArgumentError("the text has no token that something predicts");
}

size_t ChoiceScores::Best() const {
  return static_cast<size_t>(std::max_element(sums.begin(), sums.end()) - sums.begin());
}

size_t ChoiceScores::BestPerByte(const std::vector<std::string>& choices) const {
  ChoiceScores normalized = *this;
  for (size_t i = 0; i < sums.size(); ++i) {
    normalized.sums[i] /= static_cast<double>(choices[i].size());
  }
  return normalized.Best();
}

size_t CommonPrefix(const Ids& a, const Ids& b) {
  return static_cast<size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first -
                             a.begin());
}

absl::StatusOr<AccuracyResult> EvaluateChoices(Client& client,
                                               const std::vector<EvalQuestion>& questions,
                                               const EvaluationOptions& options) {
  std::vector<ChoiceScores> scores(questions.size());
  Done done(options, questions.size());
  const absl::Status status = CallInParallel(questions.size(), options.concurrency, [&](size_t i) {
    auto one = ScoreChoices(client, questions[i], options);
    if (one.ok()) {
      scores[i] = *std::move(one);
      done.Add(1);
      return absl::OkStatus();
    }
    return absl::Status(one.status().code(),
                        absl::StrCat("line ", questions[i].line, ": ", one.status().message()));
  });
  if (!status.ok()) return status;
  AccuracyResult result;
  result.questions = questions.size();
  for (size_t i = 0; i < questions.size(); ++i) {
    const EvalQuestion& question = questions[i];
    if (scores[i].Best() == question.answer) ++result.right;
    if (scores[i].BestPerByte(question.choices) == question.answer) ++result.right_normalized;
  }
  return result;
}

}  // namespace marcoro
