// Tells which chat template a Jinja text is, by what it writes around roles and contents.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "coordinator/text/chat_template.h"

namespace marcoro {

// A Jinja text with what does not matter taken out, so that texts that render alike mostly become
// equal.
struct CanonicalTemplate {
  // White space in code, parentheses, comments and kinds of quotes are gone; message['content'] and
  // m.content are CONTENT, message["role"] is ROLE; texts outside of tags are quoted strings like
  // those within, what is written one after the other is joined by +, strings so joined are one,
  // and statements stand between { and }. Line breaks in strings are real ones.
  std::string text;
  // What raise_exception is called with, in order; the calls are not in `text`.
  std::vector<std::string> errors;
};

CanonicalTemplate Canonicalize(absl::string_view jinja);

// Nothing unless every text that the template writes is accounted for: a default system prompt,
// tools or trimming that the style does not have make a template unknown.
std::optional<ChatTemplateStyle> RecognizeChatTemplate(absl::string_view jinja);

}  // namespace marcoro
