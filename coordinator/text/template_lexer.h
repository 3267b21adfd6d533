// Cuts a Jinja text into tokens.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace marcoro {

struct JinjaToken {
  enum Kind {
    kWord,            // an identifier, keyword or number
    kString,          // a quoted string, or text outside of tags; escapes resolved
    kPunctuation,     // one character, or == != <= >=
    kStatementBegin,  // {%
    kStatementEnd,
    kOutputBegin,  // {{, and in front of text outside of tags
    kOutputEnd,
  };
  Kind kind;
  std::string text;
};

// White space and comments are left out; - signs, and line breaks around statements, take away
// white space as in chat templates (trim_blocks and lstrip_blocks). Takes anything: what is no
// Jinja gives tokens of no use.
std::vector<JinjaToken> LexJinja(absl::string_view jinja);

}  // namespace marcoro
