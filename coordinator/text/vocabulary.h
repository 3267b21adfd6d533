// What each token id stands for: the bytes it writes and how it takes part in decoding. Immutable
// once built; a token costs one table look-up.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "coordinator/text/token_kind.h"

namespace marcoro {

class Vocabulary {
 public:
  // Most ids a vocabulary may have.
  static constexpr int32_t kMaxSize = 1 << 20;

  Vocabulary(int32_t size, LeadingSpace leading_space);

  // Says what `id` stands for, replacing what was said before. 0 <= id < size(); `bytes` are valid
  // UTF-8 unless kind is kByte. strippable: a space at the front of `bytes` is subject to
  // leading_space().
  void Set(int32_t id, TokenKind kind, absl::string_view bytes, bool strippable);

  // One more than the highest id. Ids in between may have no token.
  int32_t size() const { return static_cast<int32_t>(entries_.size()); }
  LeadingSpace leading_space() const { return leading_space_; }

  // kNone for ids out of range.
  TokenKind kind(int32_t id) const { return Contains(id) ? entries_[id].kind : TokenKind::kNone; }

  // What the token writes, byte for byte; empty for ids out of range.
  absl::string_view bytes(int32_t id) const {
    if (!Contains(id)) return {};
    return absl::string_view(arena_).substr(entries_[id].offset, entries_[id].length);
  }

  // Whether the token begins with a space that decoding strips at the beginning of a text.
  bool has_strippable_space(int32_t id) const {
    return Contains(id) && entries_[id].strippable_space;
  }

  // Length of the longest token's bytes. A text of n bytes takes at least n divided by this many
  // tokens, apart from white space that special tokens may swallow.
  size_t longest_token() const { return longest_token_; }

 private:
  struct Entry {
    uint32_t offset = 0;
    uint32_t length = 0;
    TokenKind kind = TokenKind::kNone;
    bool strippable_space = false;
  };

  bool Contains(int32_t id) const { return id >= 0 && id < size(); }

  LeadingSpace leading_space_;
  std::vector<Entry> entries_;
  std::string arena_;  // the bytes of all tokens, one after the other
  size_t longest_token_ = 1;
};

}  // namespace marcoro
