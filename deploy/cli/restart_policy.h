// When a part of the server that died is started again, and when it is given up.
#pragma once

#include <algorithm>
#include <deque>
#include <optional>

#include "absl/time/time.h"

namespace marcoro {

class RestartPolicy {
 public:
  // A part that failed before it was ever ready fails again: its input is wrong. One that was ready
  // is started again, after 0.2 s, doubling to 5 s with every failure within a minute; five of them
  // without getting ready in between end it.
  static constexpr int kMostFailures = 5;
  static constexpr absl::Duration kWindow = absl::Minutes(1);
  static constexpr absl::Duration kFirstDelay = absl::Milliseconds(200);
  static constexpr absl::Duration kLongestDelay = absl::Seconds(5);

  void Ready() {
    ever_ready_ = true;
    failures_without_ready_ = 0;
  }

  // How long to wait before the next start; nothing: give up.
  std::optional<absl::Duration> Failed(absl::Time now) {
    if (!ever_ready_) return std::nullopt;
    while (!failures_.empty() && now - failures_.front() > kWindow) failures_.pop_front();
    failures_.push_back(now);
    if (++failures_without_ready_ >= kMostFailures) return std::nullopt;
    absl::Duration delay = kFirstDelay;
    for (size_t i = 1; i < failures_.size() && delay < kLongestDelay; ++i) delay *= 2;
    return std::min(delay, kLongestDelay);
  }

 private:
  bool ever_ready_ = false;
  int failures_without_ready_ = 0;
  std::deque<absl::Time> failures_;  // those of the last window
};

}  // namespace marcoro
