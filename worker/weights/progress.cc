#include "worker/weights/progress.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace marcoro {
namespace {

constexpr int kBarWidth = 30;
constexpr absl::Duration kRedraw = absl::Milliseconds(100);
constexpr absl::Duration kShortestBetweenLines = absl::Seconds(2);
constexpr absl::Duration kLongestBetweenLines = absl::Seconds(10);

double Fraction(uint64_t done, uint64_t total) {
  return total == 0 ? 1.0 : static_cast<double>(done) / static_cast<double>(total);
}

// "14.5 GB", "449 kB"
std::string FormatBytes(double bytes) {
  static constexpr const char* kUnits[] = {"B", "kB", "MB", "GB", "TB"};
  size_t unit = 0;
  while (bytes >= 1000 && unit + 1 < std::size(kUnits)) {
    bytes /= 1000;
    ++unit;
  }
  const int digits = bytes < 10 && unit > 0 ? 1 : 0;
  return absl::StrFormat("%.*f %s", digits, bytes, kUnits[unit]);
}

// "42 s", "3 min 20 s"
std::string FormatSeconds(double seconds) {
  const int64_t whole = static_cast<int64_t>(std::min(seconds + 0.5, 1e9));
  if (whole < 60) return absl::StrCat(whole, " s");
  return absl::StrCat(whole / 60, " min ", whole % 60, " s");
}

}  // namespace

ProgressOptions ProgressOptions::ForStderr(std::string label, std::string unit) {
  ProgressOptions options;
  options.label = std::move(label);
  options.unit = std::move(unit);
  options.terminal = isatty(STDERR_FILENO) == 1;
  if (options.terminal) {
    options.write = [](const std::string& text) {
      std::fputs(text.c_str(), stderr);
      std::fflush(stderr);
    };
  } else {
    options.write = [](const std::string& text) { spdlog::info("{}", text); };
  }
  return options;
}

ProgressReporter::ProgressReporter(ProgressOptions options)
    : options_(std::move(options)), start_(options_.now()), shown_at_(start_) {}

ProgressReporter::~ProgressReporter() {
  if (drawn_) options_.write("\n");
}

void ProgressReporter::Update(uint64_t done, uint64_t total) {
  if (finished_) return;
  finished_ = done >= total;
  const absl::Time now = options_.now();
  if (!finished_ && !IsDue(done, total, now)) return;
  shown_at_ = now;
  shown_done_ = done;
  const std::string line = Line(done, total, now);
  if (!options_.terminal) return options_.write(line);
  drawn_ = !finished_;
  options_.write(absl::StrCat("\r", line, "\x1b[K", finished_ ? "\n" : ""));
}

std::string ProgressReporter::Amount(double count) const {
  if (options_.unit.empty()) return FormatBytes(count);
  return absl::StrFormat("%.*f %s", count < 10 && count != std::floor(count) ? 1 : 0, count,
                         options_.unit);
}

bool ProgressReporter::IsDue(uint64_t done, uint64_t total, absl::Time now) const {
  const absl::Duration since = now - shown_at_;
  if (options_.terminal) return since >= kRedraw;
  if (since < kShortestBetweenLines) return false;
  return since >= kLongestBetweenLines || Fraction(done - shown_done_, total) >= 0.1;
}

std::string ProgressReporter::Line(uint64_t done, uint64_t total, absl::Time now) const {
  const double fraction = Fraction(done, total);
  const double seconds = absl::ToDoubleSeconds(now - start_);
  std::string line = absl::StrCat(options_.label, " ");
  if (options_.terminal) {
    const size_t filled = static_cast<size_t>(fraction * kBarWidth);
    absl::StrAppend(&line, "[", std::string(filled, '#'), std::string(kBarWidth - filled, '-'),
                    "] ");
  }
  absl::StrAppendFormat(
      &line, "%3.0f %%, %s of %s", fraction * 100,
      options_.unit.empty() ? FormatBytes(static_cast<double>(done)) : absl::StrCat(done),
      Amount(static_cast<double>(total)));
  if (seconds <= 0 || done == 0) return line;
  const double rate = static_cast<double>(done) / seconds;
  absl::StrAppend(&line, ", ", Amount(rate), "/s, ");
  if (done >= total) return absl::StrCat(line, "done in ", FormatSeconds(seconds));
  return absl::StrCat(line, FormatSeconds(static_cast<double>(total - done) / rate), " left");
}

}  // namespace marcoro
