// Chat messages to the text that a model was trained on.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "coordinator/text/byte_range.h"
#include "coordinator/text/tokenizer.h"

namespace marcoro {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant", as far as the template knows them
  std::string content;
};

struct RenderedChat {
  std::string text;
  // The parts of the text that come from messages, in order: special tokens written there are plain
  // text.
  std::vector<ByteRange> literal_ranges;
};

// Where the checkpoints of one family differ.
struct ChatTemplateStyle {
  enum Family { kAlpaca, kChatMl, kMistral, kLlama2, kRaw };
  Family family = kRaw;

  bool begins_with_bos = false;  // chatml
  std::string after_instruction =
      "\n\n";                           // alpaca: between "### Instruction:" and the user's words
  std::string before_instruction = "";  // mistral: in front of "[INST] "
  std::string before_answer = "";       // mistral
  std::string after_answer = " ";       // mistral: behind the answer's </s>
  bool system_in_first_turn =
      false;  // mistral: system words, an empty line, then the user's; otherwise refused
  bool system_between_turns =
      false;  // llama2: a later system message is written in <<SYS>>; otherwise left out
  std::string alternation_error =  // mistral, llama2
      "Conversation roles must alternate user/assistant/user/assistant/...";
  std::string role_error = "Only user and assistant roles are supported!";  // mistral

  bool operator==(const ChatTemplateStyle&) const = default;
};

class ChatTemplate {
 public:
  // "alpaca", "chatml", "mistral", "llama2", "raw": what --chat-template takes.
  static absl::Span<const absl::string_view> Names();

  // INVALID_ARGUMENT listing the names for any other one.
  static absl::StatusOr<ChatTemplate> Named(absl::string_view name);

  // From the Jinja text of a checkpoint, whatever its line breaks, quotes and variable names. Only
  // a template that is known to render as one of the five does is recognised; INVALID_ARGUMENT,
  // showing its beginning and naming --chat-template, for any other and for an empty one.
  static absl::StatusOr<ChatTemplate> Recognize(absl::string_view jinja);

  explicit ChatTemplate(ChatTemplateStyle style);

  absl::string_view name() const;
  const ChatTemplateStyle& style() const { return style_; }

  // Strings that end an answer although the model's vocabulary may have no token for them:
  // "<|im_end|>" for chatml, which is plain text at a vocabulary of 32000; none for the others,
  // whose answers end with </s>. To be added to a request's own.
  absl::Span<const absl::string_view> default_stops() const;

  // bos and eos are the tokens' texts. INVALID_ARGUMENT with the template's own words for a
  // conversation that it refuses.
  absl::StatusOr<RenderedChat> Render(absl::Span<const ChatMessage> messages,
                                      bool add_generation_prompt, absl::string_view bos,
                                      absl::string_view eos) const;

 private:
  ChatTemplateStyle style_;
};

// The prompt's token ids. <s> is prepended if the tokenizer is configured to and the template has
// not written it: templates without <s> (alpaca, chatml) leave that to the tokenizer, and models of
// the Mistral family are trained to see it first, while two of them would be as strange to the
// model as none. (The reference's apply_chat_template adds none where the template has none.)
// </s> is never appended: the text ends where the answer begins.
absl::StatusOr<std::vector<int32_t>> EncodeChat(const Tokenizer& tokenizer,
                                                const RenderedChat& chat);

}  // namespace marcoro
