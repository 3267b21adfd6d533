#include "coordinator/text/template_lexer.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"

namespace marcoro {
namespace {

class Lexer {
 public:
  explicit Lexer(absl::string_view jinja) : rest_(jinja) {}

  std::vector<JinjaToken> Run() {
    while (!rest_.empty()) {
      const size_t tag = FindTag();
      EmitText(rest_.substr(0, tag), rest_.substr(tag));
      rest_.remove_prefix(tag);
      if (!rest_.empty()) LexTag();
    }
    return std::move(tokens_);
  }

 private:
  // Where the next {{, {% or {# is, or the end.
  size_t FindTag() const {
    for (size_t i = 0; i + 1 < rest_.size(); ++i) {
      if (rest_[i] != '{') continue;
      const char next = rest_[i + 1];
      if (next == '{' || next == '%' || next == '#') return i;
    }
    return rest_.size();
  }

  // Text outside of tags, less the white space that the tags around it take away.
  void EmitText(absl::string_view text, absl::string_view next_tag) {
    if (strip_next_) {
      text = absl::StripLeadingAsciiWhitespace(text);
    } else if (after_statement_ && absl::StartsWith(text, "\n")) {
      text.remove_prefix(1);
    }
    if (next_tag.size() > 2 && next_tag[2] == '-') {
      text = absl::StripTrailingAsciiWhitespace(text);
    } else if (next_tag.size() > 1 && next_tag[1] != '{') {
      absl::string_view line = text;
      while (!line.empty() && (line.back() == ' ' || line.back() == '\t')) line.remove_suffix(1);
      if (line.empty() || line.back() == '\n') text = line;
    }
    if (text.empty()) return;
    tokens_.push_back({JinjaToken::kOutputBegin, ""});
    tokens_.push_back({JinjaToken::kString, std::string(text)});
    tokens_.push_back({JinjaToken::kOutputEnd, ""});
  }

  void LexTag() {
    const char kind = rest_[1];
    rest_.remove_prefix(2);
    if (absl::StartsWith(rest_, "-") || absl::StartsWith(rest_, "+")) rest_.remove_prefix(1);
    if (kind == '#') {
      const size_t end = std::min(rest_.find("#}"), rest_.size());
      strip_next_ = end > 0 && rest_[end - 1] == '-';
      rest_.remove_prefix(std::min(end + 2, rest_.size()));
    } else {
      const bool output = kind == '{';
      tokens_.push_back({output ? JinjaToken::kOutputBegin : JinjaToken::kStatementBegin, ""});
      LexCode(output ? "}}" : "%}");
      tokens_.push_back({output ? JinjaToken::kOutputEnd : JinjaToken::kStatementEnd, ""});
    }
    after_statement_ = kind != '{';
  }

  // Up to and with the end of the tag.
  void LexCode(absl::string_view end) {
    strip_next_ = false;
    while (!rest_.empty() && !absl::StartsWith(rest_, end)) {
      const char c = rest_[0];
      if (c == '-' && absl::StartsWith(rest_.substr(1), end)) {
        strip_next_ = true;
        rest_.remove_prefix(1);
      } else if (absl::ascii_isspace(c)) {
        rest_.remove_prefix(1);
      } else if (c == '\'' || c == '"') {
        LexString();
      } else if (IsWordByte(c)) {
        size_t length = 1;
        while (length < rest_.size() && IsWordByte(rest_[length])) ++length;
        Take(JinjaToken::kWord, length);
      } else {
        const bool comparison = absl::string_view("=!<>").find(c) != absl::string_view::npos;
        Take(JinjaToken::kPunctuation,
             comparison && absl::StartsWith(rest_.substr(1), "=") ? 2 : 1);
      }
    }
    rest_.remove_prefix(std::min(end.size(), rest_.size()));
  }

  static bool IsWordByte(char c) { return absl::ascii_isalnum(c) || c == '_'; }

  void Take(JinjaToken::Kind kind, size_t length) {
    tokens_.push_back({kind, std::string(rest_.substr(0, length))});
    rest_.remove_prefix(length);
  }

  void LexString() {
    const char quote = rest_[0];
    rest_.remove_prefix(1);
    std::string text;
    while (!rest_.empty() && rest_[0] != quote) {
      if (rest_[0] == '\\' && rest_.size() > 1) {
        rest_.remove_prefix(1);
        text.push_back(rest_[0] == 'n' ? '\n' : rest_[0] == 't' ? '\t' : rest_[0]);
      } else {
        text.push_back(rest_[0]);
      }
      rest_.remove_prefix(1);
    }
    if (!rest_.empty()) rest_.remove_prefix(1);
    tokens_.push_back({JinjaToken::kString, std::move(text)});
  }

  absl::string_view rest_;
  std::vector<JinjaToken> tokens_;
  bool strip_next_ = false;       // the last tag ended with a - sign
  bool after_statement_ = false;  // the last tag was a statement or a comment
};

}  // namespace

std::vector<JinjaToken> LexJinja(absl::string_view jinja) { return Lexer(jinja).Run(); }

}  // namespace marcoro
