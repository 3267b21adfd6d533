// Token ids to text, one at a time. What is handed out is final: whole characters that no later
// token changes.
#pragma once

#include <cstdint>
#include <string>

#include "absl/types/span.h"
#include "coordinator/text/vocabulary.h"

namespace marcoro {

// The text of a sequence is what the tokens write, one after the other, except that
//  - the space in front of the first text is dropped (LeadingSpace); special tokens before it do
//  not count as text;
//  - a run of byte tokens is read as UTF-8, a byte that belongs to no character becomes U+FFFD; any
//  other token ends the run;
//  - special tokens write nothing where skip_special is set;
//  - ids without a token write nothing.
// For sequences without special tokens this is what the sentencepiece library decodes them to.
// Amortised constant time per token, a few bytes of state.
class Detokenizer {
 public:
  // The vocabulary must outlive the detokenizer. `context` are the tokens before the first one that
  // is pushed, such as the prompt's: the text handed out then continues theirs (a first word keeps
  // its space), and a character that the context leaves unfinished is handed out whole.
  Detokenizer(const Vocabulary& vocabulary, bool skip_special,
              absl::Span<const int32_t> context = {});

  // Appends to `text` what the token made final; nothing while a character is unfinished.
  void Push(int32_t id, std::string* text);

  // Appends what is left: one U+FFFD for each byte of an unfinished character. The sequence is
  // over: nothing is pushed afterwards.
  void Finish(std::string* text);

 private:
  void PushByte(char byte, std::string* text);
  // Drops the space that the start of the text loses, if `bytes` begin with it.
  absl::string_view StripLeadingSpace(int32_t id, absl::string_view bytes);

  const Vocabulary* vocabulary_;
  bool skip_special_;
  bool at_start_;  // no text yet and no space dropped
  uint8_t unfinished_size_ = 0;
  char unfinished_[4];  // the beginning of a character
};

}  // namespace marcoro
