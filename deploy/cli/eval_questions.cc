#include "deploy/cli/eval_questions.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace marcoro {
namespace {

using nlohmann::json;

absl::StatusOr<std::vector<std::string>> ParseChoices(const json& question) {
  if (!question.contains("choices") || !question["choices"].is_array()) {
    return absl::InvalidArgumentError("needs a list \"choices\"");
  }
  const json& list = question["choices"];
  if (list.size() < 2 || list.size() > kMaxChoices) {
    return absl::InvalidArgumentError(
        absl::StrCat("has ", list.size(), " choices; 2 to ", kMaxChoices, " are allowed"));
  }
  std::vector<std::string> choices;
  for (const json& choice : list) {
    if (!choice.is_string() || choice.get_ref<const std::string&>().empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("choice ", choices.size(), " is no text, or an empty one"));
    }
    choices.push_back(choice.get<std::string>());
  }
  return choices;
}

absl::StatusOr<EvalQuestion> ParseQuestion(absl::string_view line) {
  if (line.size() > kMaxQuestionBytes) {
    return absl::InvalidArgumentError(absl::StrCat("is longer than ", kMaxQuestionBytes, " bytes"));
  }
  const json root = json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
  if (!root.is_object()) return absl::InvalidArgumentError("is no JSON object");
  if (!root.contains("prompt") || !root["prompt"].is_string()) {
    return absl::InvalidArgumentError("needs a text \"prompt\"");
  }
  EvalQuestion question;
  question.prompt = root["prompt"].get<std::string>();
  auto choices = ParseChoices(root);
  if (!choices.ok()) return choices.status();
  question.choices = *std::move(choices);
  const size_t last = question.choices.size() - 1;
  if (!root.contains("answer") || !root["answer"].is_number_unsigned() ||
      root["answer"].get<uint64_t>() > last) {
    return absl::InvalidArgumentError(
        absl::StrCat("needs an \"answer\": the index of a choice, 0 to ", last));
  }
  question.answer = root["answer"].get<size_t>();
  return question;
}

}  // namespace

absl::StatusOr<std::vector<EvalQuestion>> ParseQuestions(const std::string& text,
                                                         const std::string& file) {
  std::vector<EvalQuestion> questions;
  size_t number = 0;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    absl::StatusOr<EvalQuestion> question = ParseQuestion(line);
    if (!question.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(file, ":", number, ": ", question.status().message()));
    }
    if (questions.size() == kMaxQuestions) {
      return absl::InvalidArgumentError(
          absl::StrCat(file, ": has more than ", kMaxQuestions, " questions"));
    }
    question->line = number;
    questions.push_back(*std::move(question));
  }
  if (!questions.empty()) return questions;
  return absl::InvalidArgumentError(absl::StrCat(file, ": has no questions"));
}

}  // namespace marcoro
