// Finds the added tokens in a text and cuts it there.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "coordinator/text/byte_range.h"
#include "coordinator/text/tokenizer_config.h"

namespace marcoro {

class AddedTokens {
 public:
  // A stretch of the text: an added token (id >= 0) or text between two of them (id -1). Never
  // empty.
  struct Segment {
    std::string text;
    int32_t id = -1;
  };

  // Contents are not empty. A later token of the same content replaces an earlier one.
  void Add(int32_t id, AddedToken token);

  // The id of the added token with this content, or -1.
  int32_t Find(absl::string_view content) const;

  const std::vector<int32_t>& ids() const { return ids_; }

  // Cuts the text at every added token, the leftmost and there the longest first, and applies their
  // white-space flags as the reference does. A token that touches one of the literal ranges, even
  // in part, is no token. The ranges lie in the text, in order, and do not overlap. Linear in the
  // text.
  std::vector<Segment> Split(absl::string_view text,
                             absl::Span<const ByteRange> literal_ranges) const;

 private:
  static constexpr int32_t kRoot = 0;

  struct Match {
    size_t length = 0;  // 0: none
    int32_t id = -1;
  };

  // The longest token that `text` begins with.
  Match LongestAt(absl::string_view text) const;
  void ApplyFlags(std::vector<Segment>* segments) const;

  std::vector<int32_t> ids_;
  absl::flat_hash_map<std::string, int32_t> by_content_;
  absl::flat_hash_map<int32_t, AddedToken> by_id_;

  // A trie over bytes: (node, byte) → node, and the token that ends at a node, or -1.
  absl::flat_hash_map<uint64_t, int32_t> edges_;
  std::vector<int32_t> token_at_node_ = {-1};
  bool begins_token_[256] = {};  // lets most bytes of a text go without a look into the trie
  bool any_flags_ = false;
};

}  // namespace marcoro
