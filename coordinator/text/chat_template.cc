#include "coordinator/text/chat_template.h"

#include <iterator>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "coordinator/text/template_recognition.h"
#include "coordinator/text/utf8.h"

namespace marcoro {
namespace {

// In the order of ChatTemplateStyle::Family.
constexpr absl::string_view kNames[] = {"alpaca", "chatml", "mistral", "llama2", "raw"};
constexpr absl::string_view kChatMlStops[] = {"<|im_end|>"};

class Writer {
 public:
  void Template(absl::string_view text) { chat_.text.append(text.data(), text.size()); }

  void Literal(absl::string_view text) {
    const size_t begin = chat_.text.size();
    chat_.text.append(text.data(), text.size());
    if (!text.empty()) chat_.literal_ranges.push_back({begin, chat_.text.size()});
  }

  RenderedChat Finish() { return std::move(chat_); }

 private:
  RenderedChat chat_;
};

struct Conversation {
  absl::Span<const ChatMessage> messages;
  bool add_generation_prompt;
  absl::string_view bos;
  absl::string_view eos;
};

absl::Status CheckAlternation(absl::Span<const ChatMessage> messages,
                              const ChatTemplateStyle& style, size_t i) {
  if ((messages[i].role == "user") == (i % 2 == 0)) return absl::OkStatus();
  return absl::InvalidArgumentError(style.alternation_error);
}

absl::Status RenderAlpaca(const Conversation& chat, const ChatTemplateStyle& style, Writer* out) {
  for (const ChatMessage& message : chat.messages) {
    if (message.role == "user") {
      out->Template("### Instruction:");
      out->Template(style.after_instruction);
    } else if (message.role != "system") {
      out->Template("### Response:\n");
    }
    out->Literal(message.content);
    if (message.role != "system" && message.role != "user") out->Template(chat.eos);
    out->Template("\n\n");
  }
  if (chat.add_generation_prompt) out->Template("### Response:\n");
  return absl::OkStatus();
}

absl::Status RenderChatMl(const Conversation& chat, const ChatTemplateStyle& style, Writer* out) {
  if (style.begins_with_bos) out->Template(chat.bos);
  for (const ChatMessage& message : chat.messages) {
    out->Template("<|im_start|>");
    out->Literal(message.role);  // any role goes, so it is the client's text like the content
    out->Template("\n");
    out->Literal(message.content);
    out->Template("<|im_end|>\n");
  }
  if (chat.add_generation_prompt) out->Template("<|im_start|>assistant\n");
  return absl::OkStatus();
}

absl::Status RenderMistral(const Conversation& chat, const ChatTemplateStyle& style, Writer* out) {
  absl::Span<const ChatMessage> turns = chat.messages;
  const ChatMessage* system = nullptr;
  if (style.system_in_first_turn && !turns.empty() && turns[0].role == "system") {
    system = &turns[0];
    turns.remove_prefix(1);
  }
  out->Template(chat.bos);
  for (size_t i = 0; i < turns.size(); ++i) {
    absl::Status status = CheckAlternation(turns, style, i);
    if (!status.ok()) return status;
    if (turns[i].role == "user") {
      out->Template(style.before_instruction);
      out->Template("[INST] ");
      if (i == 0 && system != nullptr) {
        out->Literal(system->content);
        out->Template("\n\n");
      }
      out->Literal(turns[i].content);
      out->Template(" [/INST]");
    } else if (turns[i].role == "assistant") {
      out->Template(style.before_answer);
      out->Literal(turns[i].content);
      out->Template(chat.eos);
      out->Template(style.after_answer);
    } else {
      return absl::InvalidArgumentError(style.role_error);
    }
  }
  return absl::OkStatus();
}

// The first user turn of a llama2 chat, which carries the system's words. White space is stripped
// off the whole, so that of an empty user turn the line breaks behind <</SYS>> go too.
void WriteWithSystem(absl::string_view system, absl::string_view content, Writer* out) {
  out->Template("<<SYS>>\n");
  out->Literal(system);
  const absl::string_view words = StripRight(content);
  out->Template(words.empty() ? "\n<</SYS>>" : "\n<</SYS>>\n\n");
  out->Literal(words);
}

absl::Status RenderLlama2(const Conversation& chat, const ChatTemplateStyle& style, Writer* out) {
  if (chat.messages.empty()) {
    return absl::InvalidArgumentError("the chat has no messages");
  }
  absl::Span<const ChatMessage> turns = chat.messages;
  const bool has_system = turns[0].role == "system";
  if (has_system) turns.remove_prefix(1);
  for (size_t i = 0; i < turns.size(); ++i) {
    absl::Status status = CheckAlternation(turns, style, i);
    if (!status.ok()) return status;
    const absl::string_view stripped = StripRight(StripLeft(turns[i].content));
    if (turns[i].role == "user") {
      out->Template(chat.bos);
      out->Template("[INST] ");
      if (i == 0 && has_system) {
        WriteWithSystem(chat.messages[0].content, turns[i].content, out);
      } else {
        out->Literal(stripped);
      }
      out->Template(" [/INST]");
    } else if (turns[i].role == "assistant") {
      out->Template(" ");
      out->Literal(stripped);
      out->Template(" ");
      out->Template(chat.eos);
    } else if (turns[i].role == "system" && style.system_between_turns) {
      out->Template("<<SYS>>\n");
      out->Literal(stripped);
      out->Template("\n<</SYS>>\n\n");
    }
  }
  return absl::OkStatus();
}

absl::Status RenderRaw(const Conversation& chat, const ChatTemplateStyle&, Writer* out) {
  for (const ChatMessage& message : chat.messages) out->Literal(message.content);
  return absl::OkStatus();
}

using RenderFunction = absl::Status (*)(const Conversation&, const ChatTemplateStyle&, Writer*);

// In the order of ChatTemplateStyle::Family.
constexpr RenderFunction kRender[] = {RenderAlpaca, RenderChatMl, RenderMistral, RenderLlama2,
                                      RenderRaw};

}  // namespace

absl::Span<const absl::string_view> ChatTemplate::Names() { return kNames; }

absl::StatusOr<ChatTemplate> ChatTemplate::Named(absl::string_view name) {
  for (size_t i = 0; i < std::size(kNames); ++i) {
    if (kNames[i] != name) continue;
    return ChatTemplate({.family = static_cast<ChatTemplateStyle::Family>(i)});
  }
  return absl::InvalidArgumentError(absl::StrCat("there is no chat template \"", name,
                                                 "\"; known ones: ", absl::StrJoin(kNames, ", ")));
}

absl::StatusOr<ChatTemplate> ChatTemplate::Recognize(absl::string_view jinja) {
  constexpr size_t kShownBytes = 160;
  if (jinja.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the checkpoint has no chat template; name one by "
                     "--chat-template: ",
                     absl::StrJoin(kNames, ", ")));
  }
  const std::optional<ChatTemplateStyle> style = RecognizeChatTemplate(jinja);
  if (style) return ChatTemplate(*style);
  return absl::InvalidArgumentError(absl::StrCat(
      "the chat_template of tokenizer_config.json is none of those known (",
      absl::StrJoin(kNames, ", "),
      "); name one by --chat-template. It begins: ", SanitizeUtf8(jinja.substr(0, kShownBytes))));
}

ChatTemplate::ChatTemplate(ChatTemplateStyle style) : style_(std::move(style)) {}

absl::string_view ChatTemplate::name() const { return kNames[style_.family]; }

absl::Span<const absl::string_view> ChatTemplate::default_stops() const {
  if (style_.family != ChatTemplateStyle::kChatMl) return {};
  return kChatMlStops;
}

absl::StatusOr<RenderedChat> ChatTemplate::Render(absl::Span<const ChatMessage> messages,
                                                  bool add_generation_prompt, absl::string_view bos,
                                                  absl::string_view eos) const {
  Writer writer;
  absl::Status status =
      kRender[style_.family]({messages, add_generation_prompt, bos, eos}, style_, &writer);
  if (!status.ok()) return status;
  return writer.Finish();
}

absl::StatusOr<std::vector<int32_t>> EncodeChat(const Tokenizer& tokenizer,
                                                const RenderedChat& chat) {
  const absl::string_view bos = tokenizer.bos_text();
  const bool has_bos = !bos.empty() && absl::StartsWith(chat.text, bos) &&
                       (chat.literal_ranges.empty() || chat.literal_ranges[0].begin >= bos.size());
  EncodeOptions options;
  options.add_bos = tokenizer.add_bos() && !has_bos;
  options.add_eos = false;
  return tokenizer.Encode(chat.text, options, chat.literal_ranges);
}

}  // namespace marcoro
