// Tells a person how far loading, or something else that takes its time, is: a bar that redraws
// itself on a terminal, now and then a line elsewhere.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace marcoro {

struct ProgressOptions {
  std::string label = "loading";
  std::string unit;  // what is counted, as "tokens"; empty: bytes
  // Whether `write` goes to a terminal that understands carriage return and "erase to the end of
  // the line".
  bool terminal = false;
  // Takes the bar's next drawing, or a line without its end.
  std::function<void(const std::string& text)> write;
  std::function<absl::Time()> now = absl::Now;

  // A bar on stderr if that is a terminal, otherwise spdlog::info.
  static ProgressOptions ForStderr(std::string label, std::string unit = "");
};

// Not thread-safe; its caller tells it one thing at a time (as LoadParameters does).
class ProgressReporter {
 public:
  explicit ProgressReporter(ProgressOptions options);
  // Ends the line of a bar that did not come to its end, so that an error has a line of its own.
  ~ProgressReporter();
  ProgressReporter(const ProgressReporter&) = delete;
  ProgressReporter& operator=(const ProgressReporter&) = delete;

  // done of total. Draws the bar at most ten times a second; writes a line when 10 % more or
  // 10 s have passed, but not within 2 s of the last. The last call (done == total) always shows,
  // once.
  void Update(uint64_t done, uint64_t total);

 private:
  std::string Amount(double count) const;
  bool IsDue(uint64_t done, uint64_t total, absl::Time now) const;
  std::string Line(uint64_t done, uint64_t total, absl::Time now) const;

  const ProgressOptions options_;
  const absl::Time start_;
  absl::Time shown_at_;
  uint64_t shown_done_ = 0;
  bool drawn_ = false;  // a bar whose line has not ended
  bool finished_ = false;
};

}  // namespace marcoro
