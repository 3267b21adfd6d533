// Questions with choices, as a JSONL file has them.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace marcoro {

inline constexpr size_t kMaxQuestions = 100'000;
inline constexpr size_t kMaxQuestionBytes = 1 << 20;  // of a line
inline constexpr size_t kMaxChoices = 64;

struct EvalQuestion {
  size_t line = 0;  // from 1
  std::string prompt;
  std::vector<std::string> choices;  // at least two, none empty; follow the prompt as they are
  size_t answer = 0;                 // index of the right one
};

// Each line is a JSON object {"prompt": TEXT, "choices": [TEXT, …], "answer": INDEX}; other keys
// are not looked at, empty lines neither. INVALID_ARGUMENT, naming file and line, for anything
// else, for more than the limits above, and for a file without questions.
absl::StatusOr<std::vector<EvalQuestion>> ParseQuestions(const std::string& text,
                                                         const std::string& file);

}  // namespace marcoro
