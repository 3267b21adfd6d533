#include "coordinator/text/added_tokens.h"

#include <grpc/support/log.h>

#include <utility>

#include "coordinator/text/utf8.h"

namespace marcoro {
namespace {

uint64_t EdgeKey(int32_t node, char byte) {
  return static_cast<uint64_t>(node) << 8 | static_cast<uint8_t>(byte);
}

}  // namespace

void AddedTokens::Add(int32_t id, AddedToken token) {
  GPR_ASSERT(id >= 0 && !token.content.empty());
  int32_t node = kRoot;
  for (const char byte : token.content) {
    const auto [edge, is_new] =
        edges_.try_emplace(EdgeKey(node, byte), static_cast<int32_t>(token_at_node_.size()));
    if (is_new) token_at_node_.push_back(-1);
    node = edge->second;
  }
  token_at_node_[node] = id;
  begins_token_[static_cast<uint8_t>(token.content[0])] = true;
  any_flags_ = any_flags_ || token.lstrip || token.rstrip || token.single_word;
  by_content_[token.content] = id;
  if (!by_id_.contains(id)) ids_.push_back(id);
  by_id_[id] = std::move(token);
}

int32_t AddedTokens::Find(absl::string_view content) const {
  const auto found = by_content_.find(content);
  return found == by_content_.end() ? -1 : found->second;
}

AddedTokens::Match AddedTokens::LongestAt(absl::string_view text) const {
  Match longest;
  int32_t node = kRoot;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto edge = edges_.find(EdgeKey(node, text[i]));
    if (edge == edges_.end()) break;
    node = edge->second;
    if (token_at_node_[node] >= 0) longest = {i + 1, token_at_node_[node]};
  }
  return longest;
}

std::vector<AddedTokens::Segment> AddedTokens::Split(
    absl::string_view text, absl::Span<const ByteRange> literal_ranges) const {
  std::vector<Segment> segments;
  size_t text_begin = 0;  // of the segment that is not cut off yet
  size_t next_range = 0;
  size_t at = 0;
  const auto cut = [&](size_t end) {
    if (end > text_begin) {
      segments.push_back({std::string(text.substr(text_begin, end - text_begin)), -1});
    }
  };
  while (at < text.size()) {
    while (next_range < literal_ranges.size() &&
           (literal_ranges[next_range].end <= at ||
            literal_ranges[next_range].begin == literal_ranges[next_range].end)) {
      ++next_range;
    }
    const bool has_range = next_range < literal_ranges.size();
    if (has_range && literal_ranges[next_range].begin <= at) {
      at = literal_ranges[next_range].end;
      continue;
    }
    if (!begins_token_[static_cast<uint8_t>(text[at])]) {
      ++at;
      continue;
    }
    const size_t limit = has_range ? literal_ranges[next_range].begin : text.size();
    const Match match = LongestAt(text.substr(at, limit - at));
    if (match.length == 0) {
      ++at;
      continue;
    }
    cut(at);
    segments.push_back({std::string(text.substr(at, match.length)), match.id});
    at += match.length;
    text_begin = at;
  }
  cut(text.size());
  if (any_flags_) ApplyFlags(&segments);
  return segments;
}

// Follows the reference step by step, its order of left and right included: a token sees its
// neighbours as the token before it left them, except that single_word judges them by their text
// before stripping.
void AddedTokens::ApplyFlags(std::vector<Segment>* segments) const {
  const auto replace = [](Segment* segment, std::string text) {
    if (segment->text == text) return;
    segment->text = std::move(text);
    segment->id = -1;  // whatever it was, it is plain text now
  };
  for (size_t i = 0; i < segments->size(); ++i) {
    const int32_t id = (*segments)[i].id;
    if (id < 0) continue;
    const AddedToken& token = by_id_.at(id);
    Segment* left = i > 0 ? &(*segments)[i - 1] : nullptr;
    Segment* right = i + 1 < segments->size() ? &(*segments)[i + 1] : nullptr;
    const std::string left_text = left != nullptr ? left->text : "";
    const std::string right_text = right != nullptr ? right->text : "";
    if (token.rstrip && !right_text.empty()) replace(right, std::string(StripLeft(right_text)));
    if (token.lstrip && !left_text.empty()) replace(left, std::string(StripRight(left_text)));
    if (!token.single_word) continue;
    if (!left_text.empty() && left_text.back() != ' ') {
      replace(left, left->text + token.content);
      replace(&(*segments)[i], "");
    } else if (!right_text.empty() && right_text.front() != ' ') {
      replace(right, token.content + right->text);
      replace(&(*segments)[i], "");
    }
  }
  std::vector<Segment> kept;
  kept.reserve(segments->size());
  for (Segment& segment : *segments) {
    if (!segment.text.empty()) kept.push_back(std::move(segment));
  }
  *segments = std::move(kept);
}

}  // namespace marcoro
