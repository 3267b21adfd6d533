#include "coordinator/text/stop_matcher.h"

#include <grpc/support/log.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "coordinator/text/utf8.h"

namespace marcoro {

absl::Status StopMatcher::CheckStops(absl::Span<const std::string> stops) {
  if (stops.size() > kMaxStops) {
    return absl::InvalidArgumentError(
        absl::StrCat("stop has ", stops.size(), " strings; at most ", kMaxStops, " are allowed"));
  }
  for (size_t i = 0; i < stops.size(); ++i) {
    if (stops[i].empty()) {
      return absl::InvalidArgumentError(absl::StrCat("stop[", i, "] is empty"));
    }
    if (stops[i].size() > kMaxStopBytes) {
      return absl::InvalidArgumentError(absl::StrCat("stop[", i, "] is ", stops[i].size(),
                                                     " bytes long; at most ", kMaxStopBytes,
                                                     " are allowed"));
    }
    if (!IsValidUtf8(stops[i])) {
      return absl::InvalidArgumentError(absl::StrCat("stop[", i, "] is not valid UTF-8"));
    }
  }
  return absl::OkStatus();
}

StopMatcher::Pattern::Pattern(absl::string_view stop) : text(stop), border(stop.size(), 0) {
  for (size_t i = 1; i < text.size(); ++i) {
    uint16_t length = border[i - 1];
    while (length > 0 && text[i] != text[length]) length = border[length - 1];
    border[i] = text[i] == text[length] ? length + 1 : 0;
  }
}

bool StopMatcher::Pattern::Advance(char byte) {
  while (matched > 0 && text[matched] != byte) matched = border[matched - 1];
  if (text[matched] == byte) ++matched;
  return matched == text.size();
}

void StopMatcher::Pattern::FallBack() { matched = border[matched - 1]; }

StopMatcher::StopMatcher(absl::Span<const std::string> stops, bool include_stop)
    : include_stop_(include_stop) {
  GPR_ASSERT(CheckStops(stops).ok());
  patterns_.reserve(stops.size());
  for (const std::string& stop : stops) patterns_.emplace_back(stop);
}

int StopMatcher::Advance(char byte) {
  int longest = -1;
  for (size_t i = 0; i < patterns_.size(); ++i) {
    if (!patterns_[i].Advance(byte)) continue;
    if (longest < 0 || patterns_[i].text.size() > patterns_[longest].text.size()) {
      longest = static_cast<int>(i);
    }
  }
  return longest;
}

bool StopMatcher::Push(absl::string_view piece, std::string* released, bool may_stop) {
  GPR_ASSERT(!stopped());
  if (patterns_.empty()) {
    released->append(piece.data(), piece.size());
    return false;
  }
  for (size_t i = 0; i < piece.size(); ++i) {
    const int completed = Advance(piece[i]);
    if (completed < 0) continue;
    if (may_stop) {
      stopped_at_ = completed;
      held_.append(piece.data(), i + 1);
      if (!include_stop_) held_.resize(held_.size() - patterns_[completed].text.size());
      Finish(released);
      return true;
    }
    for (Pattern& pattern : patterns_) {
      if (pattern.matched == pattern.text.size()) pattern.FallBack();
    }
  }
  held_.append(piece.data(), piece.size());
  size_t keep = 0;
  for (const Pattern& pattern : patterns_) keep = std::max<size_t>(keep, pattern.matched);
  released->append(held_, 0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return false;
}

void StopMatcher::Finish(std::string* released) {
  released->append(held_);
  held_.clear();
}

}  // namespace marcoro
