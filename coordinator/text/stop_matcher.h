// Finds stop strings in a text that arrives in pieces, and holds back what may yet become one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace marcoro {

// The match that ends first wins; of those that end at the same byte, the longest. Time is linear
// in the text for each stop string, whatever the strings are (Knuth, Morris and Pratt).
class StopMatcher {
 public:
  static constexpr size_t kMaxStops = 16;
  static constexpr size_t kMaxStopBytes = 1024;

  // INVALID_ARGUMENT saying which of the strings is empty, too long or not UTF-8, or that there are
  // too many.
  static absl::Status CheckStops(absl::Span<const std::string> stops);

  // `stops` pass CheckStops. include_stop: the matched string is part of the released text.
  StopMatcher(absl::Span<const std::string> stops, bool include_stop);

  // Takes the next piece of text, whole UTF-8 characters, such as one token's. Appends to
  // `released` all that can no longer be part of a stop string: everything but the longest suffix
  // that begins one. Returns true when a stop string is complete: the text up to it (or with it)
  // has then been released, the rest of the piece is dropped, and nothing more may be pushed.
  //
  // may_stop = false: strings that complete in this piece are let pass (a request's min_tokens);
  // one that only begins in it can still be completed by a later piece.
  bool Push(absl::string_view piece, std::string* released, bool may_stop = true);

  // The text is over without a stop: appends what was held back.
  void Finish(std::string* released);

  bool stopped() const { return stopped_at_ >= 0; }
  // The index of the stop string that matched, or -1.
  int stopped_at() const { return stopped_at_; }
  // Bytes that are held back now.
  size_t held_bytes() const { return held_.size(); }

 private:
  struct Pattern {
    std::string text;
    std::vector<uint16_t>
        border;  // [i]: length of the longest proper prefix of text[0, i] that is also its suffix
    uint16_t matched = 0;  // how much of the pattern the text ends with now

    explicit Pattern(absl::string_view stop);
    bool Advance(char byte);  // whether it completed the pattern
    void FallBack();          // after a completion that does not count
  };

  // The longest pattern that `byte` completes, or -1.
  int Advance(char byte);

  std::vector<Pattern> patterns_;
  bool include_stop_;
  int stopped_at_ = -1;
  std::string held_;
};

}  // namespace marcoro
