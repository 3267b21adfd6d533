// How well a served model knows a text, and answers questions with choices.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "deploy/cli/client.h"
#include "deploy/cli/eval_questions.h"

namespace marcoro {

struct EvaluationOptions {
  int context = 1024;   // tokens of a window, the beginning-of-sequence token included
  int stride = 512;     // tokens from one window's begin to the next one's, at most its text tokens
  int concurrency = 8;  // calls at a time
  std::optional<bool> add_bos = std::nullopt;  // unset: as the tokenizer is configured
  bool parse_special_tokens = false;
  // Told, one at a time, how many tokens of the text, or questions, are done of how many.
  std::function<void(uint64_t done, uint64_t total)> progress = {};
};

// Tokens [begin, end) of a text, seen by the model in one piece; those from `scored` on count.
struct EvalWindow {
  size_t begin = 0;
  size_t end = 0;
  size_t scored = 0;
};

// Windows of at most `length` tokens, each `stride` (1 … length) after the one before, up to the
// first that reaches the end. Every token counts once, in the first window that has it.
std::vector<EvalWindow> PlanWindows(size_t tokens, size_t length, size_t stride);

struct PerplexityResult {
  double logprob_sum = 0;  // natural logarithms, over all tokens that count
  uint64_t tokens = 0;
  uint64_t bytes = 0;  // of the text

  // exp of the mean negative log-probability of a token. Depends on how the tokenizer cuts texts.
  double perplexity() const { return std::exp(-logprob_sum / static_cast<double>(tokens)); }
  // The same per byte of the text, in bits: models of different vocabularies can be compared.
  double bits_per_byte() const { return -logprob_sum / std::log(2.0) / static_cast<double>(bytes); }
};

// Every window begins with the beginning-of-sequence token, if the tokenizer uses one; without one
// the text's first token does not count, since nothing predicts it. INVALID_ARGUMENT for a context
// that the model does not have, and for a text without tokens; errors of the calls.
absl::StatusOr<PerplexityResult> EvaluatePerplexity(Client& client, const std::string& text,
                                                    const EvaluationOptions& options);

// The log-probability of each choice behind the prompt, and what is chosen by it.
struct ChoiceScores {
  std::vector<double> sums;
  // The largest sum, and the largest sum per byte of the choice's text; of equal ones the first.
  size_t Best() const;
  size_t BestPerByte(const std::vector<std::string>& choices) const;
};

// How many tokens the two have in common at their beginnings.
size_t CommonPrefix(const std::vector<uint32_t>& a, const std::vector<uint32_t>& b);

struct AccuracyResult {
  uint64_t questions = 0;
  uint64_t right = 0;             // by the sum
  uint64_t right_normalized = 0;  // by the sum per byte

  double accuracy() const { return Share(right); }
  double normalized() const { return Share(right_normalized); }
  // Of the accuracy: sqrt(p (1 - p) / questions).
  double standard_error() const {
    return std::sqrt(accuracy() * (1 - accuracy()) / static_cast<double>(questions));
  }

 private:
  double Share(uint64_t count) const {
    return static_cast<double>(count) / static_cast<double>(questions);
  }
};

// Prompt and choice are tokenized together, as the model would have seen them. A choice's score is
// that of all tokens behind those that the prompt alone and the prompt with each of the choices
// begin with: exactly the tokens after the prompt's own, unless the tokenizer joins the prompt's
// end to a choice's beginning; then the joined tokens belong to the choices, to all of them. Errors
// name the line of the question.
absl::StatusOr<AccuracyResult> EvaluateChoices(Client& client,
                                               const std::vector<EvalQuestion>& questions,
                                               const EvaluationOptions& options);

}  // namespace marcoro
