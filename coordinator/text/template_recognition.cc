#include "coordinator/text/template_recognition.h"

#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "coordinator/text/template_lexer.h"

namespace marcoro {
namespace {

constexpr size_t kMaxTemplateBytes = 256 << 10;

class Canonicalizer {
 public:
  explicit Canonicalizer(std::vector<JinjaToken> tokens) : tokens_(std::move(tokens)) {}

  CanonicalTemplate Run() {
    for (at_ = 0; at_ < tokens_.size(); ++at_) Take(tokens_[at_]);
    for (size_t i = 0; i < out_.size(); ++i) {
      const bool words = i > 0 && IsWord(out_[i]) && IsWord(out_[i - 1]);
      absl::StrAppend(&result_.text, words ? " " : "", Written(out_[i]));
    }
    return std::move(result_);
  }

 private:
  static bool IsWord(const JinjaToken& token) { return token.kind == JinjaToken::kWord; }

  static std::string Written(const JinjaToken& token) {
    if (token.kind != JinjaToken::kString) return token.text;
    return absl::StrCat("'", absl::StrReplaceAll(token.text, {{"'", "\\'"}}), "'");
  }

  bool NextIs(size_t ahead, JinjaToken::Kind kind, absl::string_view text) const {
    return at_ + ahead < tokens_.size() && tokens_[at_ + ahead].kind == kind &&
           tokens_[at_ + ahead].text == text;
  }

  bool LastIs(absl::string_view punctuation) const {
    return !out_.empty() && out_.back().kind == JinjaToken::kPunctuation &&
           out_.back().text == punctuation;
  }

  void Take(const JinjaToken& token) {
    switch (token.kind) {
      case JinjaToken::kStatementBegin:
        out_.push_back({JinjaToken::kPunctuation, "{"});
        break;
      case JinjaToken::kStatementEnd:
        out_.push_back({JinjaToken::kPunctuation, "}"});
        break;
      case JinjaToken::kOutputBegin:
        if (follows_output_) out_.push_back({JinjaToken::kPunctuation, "+"});
        break;
      case JinjaToken::kOutputEnd:
        break;
      case JinjaToken::kString:
        TakeString(token);
        break;
      case JinjaToken::kWord:
        if (!TakeRaise(token)) out_.push_back(token);
        break;
      case JinjaToken::kPunctuation:
        if (!TakeMember(token)) TakePunctuation(token);
        break;
    }
    follows_output_ = token.kind == JinjaToken::kOutputEnd;
  }

  // 'a' + 'b' is 'ab'.
  void TakeString(const JinjaToken& token) {
    const size_t size = out_.size();
    if (size >= 2 && LastIs("+") && out_[size - 2].kind == JinjaToken::kString) {
      out_.pop_back();
      out_.back().text += token.text;
    } else {
      out_.push_back(token);
    }
  }

  // raise_exception('…')
  bool TakeRaise(const JinjaToken& token) {
    const bool call = token.text == "raise_exception" && NextIs(1, JinjaToken::kPunctuation, "(") &&
                      at_ + 3 < tokens_.size() && tokens_[at_ + 2].kind == JinjaToken::kString &&
                      NextIs(3, JinjaToken::kPunctuation, ")");
    if (!call) return false;
    result_.errors.push_back(tokens_[at_ + 2].text);
    at_ += 3;
    return true;
  }

  // message['content'], message.content and the same of role.
  bool TakeMember(const JinjaToken& token) {
    for (const auto& [member, canonical] :
         {std::pair<absl::string_view, const char*>("content", "CONTENT"), {"role", "ROLE"}}) {
      const bool index = token.text == "[" && NextIs(1, JinjaToken::kString, member) &&
                         NextIs(2, JinjaToken::kPunctuation, "]");
      const bool dot = token.text == "." && NextIs(1, JinjaToken::kWord, member);
      if (!index && !dot) continue;
      at_ += index ? 2 : 1;
      if (!out_.empty() && IsWord(out_.back())) out_.pop_back();
      out_.push_back({JinjaToken::kWord, canonical});
      return true;
    }
    return false;
  }

  void TakePunctuation(const JinjaToken& token) {
    if (token.text == "(" || token.text == ")") return;
    out_.push_back({token.kind, token.text == "~" ? "+" : token.text});
  }

  std::vector<JinjaToken> tokens_;
  size_t at_ = 0;
  std::vector<JinjaToken> out_;
  bool follows_output_ = false;
  CanonicalTemplate result_;
};

// A canonical template of which what is known is crossed out piece by piece.
class Accounting {
 public:
  explicit Accounting(absl::string_view canonical) : rest_(canonical) {}

  // Whether the fragment is in what is left; crosses out every occurrence.
  bool Strike(absl::string_view fragment) {
    return absl::StrReplaceAll({{fragment, ";"}}, &rest_) > 0;
  }

  // Whether nothing is left but loops and conditions over roles.
  bool Settled(const absl::flat_hash_set<absl::string_view>& words) const;

 private:
  std::string rest_;
};

bool Accounting::Settled(const absl::flat_hash_set<absl::string_view>& words) const {
  absl::string_view previous;
  for (const JinjaToken& token : LexJinja(absl::StrCat("{%", rest_, "%}"))) {
    if (token.kind == JinjaToken::kString) {
      if (token.text != "user" && token.text != "assistant" && token.text != "system") return false;
    } else if (token.kind == JinjaToken::kWord) {
      const bool names_variable = previous == "for";
      if (!names_variable && !words.contains(token.text)) return false;
    }
    previous = token.kind == JinjaToken::kWord ? absl::string_view(token.text) : "";
  }
  return true;
}

// What loops and conditions are made of.
absl::flat_hash_set<absl::string_view> Words(std::initializer_list<absl::string_view> more) {
  absl::flat_hash_set<absl::string_view> words = {"for",      "in",
                                                  "if",       "elif",
                                                  "else",     "endif",
                                                  "endfor",   "set",
                                                  "not",      "is",
                                                  "and",      "defined",
                                                  "true",     "false",
                                                  "True",     "False",
                                                  "messages", "ROLE",
                                                  "or",       "loop",
                                                  "first",    "add_generation_prompt"};
  words.insert(more.begin(), more.end());
  return words;
}

std::optional<ChatTemplateStyle> AsChatMl(const CanonicalTemplate& canonical) {
  ChatTemplateStyle style{.family = ChatTemplateStyle::kChatMl};
  Accounting rest(canonical.text);
  if (!rest.Strike("'<|im_start|>'+ROLE+'\n'+CONTENT+'<|im_end|>\n'")) {
    for (const absl::string_view role : {"user", "assistant", "system"}) {
      const bool found =
          rest.Strike(absl::StrCat("'<|im_start|>", role, "\n'+CONTENT+'<|im_end|>\n'"));
      if (!found) return std::nullopt;
    }
  }
  if (!rest.Strike("'<|im_start|>assistant\n'")) return std::nullopt;
  style.begins_with_bos = rest.Strike("bos_token");
  if (!rest.Settled(Words({}))) return std::nullopt;
  return style;
}

std::optional<ChatTemplateStyle> AsAlpaca(const CanonicalTemplate& canonical) {
  ChatTemplateStyle style{.family = ChatTemplateStyle::kAlpaca};
  Accounting rest(canonical.text);
  bool user = false;
  for (const absl::string_view separator : {"\n\n", "\n"}) {
    if (!rest.Strike(absl::StrCat("'### Instruction:", separator, "'+CONTENT+'\n\n'"))) continue;
    if (user) return std::nullopt;
    user = true;
    style.after_instruction = std::string(separator);
  }
  const bool answer = rest.Strike("'### Response:\n'+CONTENT+eos_token+'\n\n'");
  const bool system = rest.Strike("CONTENT+'\n\n'");
  const bool prompt = rest.Strike("'### Response:\n'");
  if (!user || !answer || !system || !prompt || !rest.Settled(Words({}))) return std::nullopt;
  return style;
}

// How the answers of a Mistral template are written; false if in no known way.
bool StrikeMistralAnswer(Accounting* rest, ChatTemplateStyle* style) {
  for (const absl::string_view before : {" ", ""}) {
    for (const absl::string_view after : {" ", ""}) {
      const std::string fragment = absl::StrCat(before.empty() ? "" : "' '+", "CONTENT+eos_token",
                                                after.empty() ? "" : "+' '");
      if (!rest->Strike(fragment)) continue;
      style->before_answer = std::string(before);
      style->after_answer = std::string(after);
      return true;
    }
  }
  return false;
}

std::optional<ChatTemplateStyle> AsMistral(const CanonicalTemplate& canonical) {
  ChatTemplateStyle style{.family = ChatTemplateStyle::kMistral};
  Accounting rest(canonical.text);
  bool user = false;
  for (const absl::string_view before : {"", " "}) {
    if (!rest.Strike(absl::StrCat("'", before, "[INST] '+CONTENT+' [/INST]'"))) continue;
    if (user) return std::nullopt;
    user = true;
    style.before_instruction = std::string(before);
  }
  style.system_in_first_turn = rest.Strike(absl::StrCat(
      "'", style.before_instruction, "[INST] '+system_message+'\n\n'+CONTENT+' [/INST]'"));
  const bool answer = StrikeMistralAnswer(&rest, &style);
  if (style.system_in_first_turn) {
    rest.Strike("{set system_message=messages[0]CONTENT}");
    rest.Strike("{set loop_messages=messages[1:]}");
  }
  for (const std::string& error : canonical.errors) {
    std::string& slot =
        absl::StrContains(error, "alternate") ? style.alternation_error : style.role_error;
    slot = error;
  }
  const bool settled =
      rest.Settled(Words({"bos_token", "index0", "2", "0", "system_message", "loop_messages"}));
  if (!user || !answer || !absl::StrContains(canonical.text, "bos_token") || !settled) {
    return std::nullopt;
  }
  return style;
}

std::optional<ChatTemplateStyle> AsLlama2(const CanonicalTemplate& canonical) {
  ChatTemplateStyle style{.family = ChatTemplateStyle::kLlama2};
  Accounting rest(canonical.text);
  const bool known =
      rest.Strike("bos_token+'[INST] '+content.strip+' [/INST]'") &&
      rest.Strike("' '+content.strip+' '+eos_token") &&
      rest.Strike("{set content='<<SYS>>\n'+system_message+'\n<</SYS>>\n\n'+CONTENT}") &&
      rest.Strike("{set content=CONTENT}") && rest.Strike("{set loop_messages=messages[1:]}") &&
      rest.Strike("{set system_message=messages[0]CONTENT}");
  style.system_between_turns = rest.Strike("'<<SYS>>\n'+content.strip+'\n<</SYS>>\n\n'");
  for (const std::string& error : canonical.errors) {
    if (absl::StrContains(error, "alternate")) style.alternation_error = error;
  }
  if (!known || !rest.Settled(Words({"index0", "2", "0", "system_message", "loop_messages"}))) {
    return std::nullopt;
  }
  return style;
}

std::optional<ChatTemplateStyle> AsRaw(const CanonicalTemplate& canonical) {
  Accounting rest(canonical.text);
  if (!rest.Strike("CONTENT") || !rest.Settled({"for", "in", "messages", "endfor"})) {
    return std::nullopt;
  }
  return ChatTemplateStyle{.family = ChatTemplateStyle::kRaw};
}

}  // namespace

CanonicalTemplate Canonicalize(absl::string_view jinja) {
  return Canonicalizer(LexJinja(jinja)).Run();
}

std::optional<ChatTemplateStyle> RecognizeChatTemplate(absl::string_view jinja) {
  if (jinja.size() > kMaxTemplateBytes) return std::nullopt;
  const CanonicalTemplate canonical = Canonicalize(jinja);
  for (const auto recognize : {AsChatMl, AsAlpaca, AsMistral, AsLlama2, AsRaw}) {
    std::optional<ChatTemplateStyle> style = recognize(canonical);
    if (style) return style;
  }
  return std::nullopt;
}

}  // namespace marcoro
