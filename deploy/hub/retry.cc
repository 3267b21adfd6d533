#include "deploy/hub/retry.h"

#include <curl/curl.h>

#include <algorithm>

#include "absl/random/random.h"
#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"

namespace marcoro {
namespace {

constexpr char kRetryAfter[] = "marcoro/retry-after";  // a payload: milliseconds
constexpr int64_t kMostSeconds = 86'400;

absl::Duration RetryAfterOf(const absl::Status& status) {
  int64_t milliseconds = 0;
  const auto payload = status.GetPayload(kRetryAfter);
  if (!payload || !absl::SimpleAtoi(std::string(*payload), &milliseconds)) return {};
  return absl::Milliseconds(milliseconds);
}

}  // namespace

absl::Status TransientError(const std::string& message, absl::Duration retry_after) {
  absl::Status status = absl::UnavailableError(message);
  if (retry_after > absl::ZeroDuration()) {
    // By a view: clang and GCC mangle Cord's other constructor differently.
    const std::string milliseconds = absl::StrCat(absl::ToInt64Milliseconds(retry_after));
    status.SetPayload(kRetryAfter, absl::Cord(absl::string_view(milliseconds)));
  }
  return status;
}

absl::Duration ParseRetryAfter(const std::string& header, absl::Time now) {
  int64_t seconds = 0;
  if (!absl::SimpleAtoi(header, &seconds)) {
    const time_t date = curl_getdate(header.c_str(), nullptr);
    if (date < 0) return absl::ZeroDuration();
    return std::clamp(absl::FromTimeT(date) - now, absl::ZeroDuration(),
                      absl::Seconds(kMostSeconds));
  }
  return absl::Seconds(std::clamp<int64_t>(seconds, 0, kMostSeconds));
}

std::optional<absl::Duration> RetryPolicy::Failed(const absl::Status& status) {
  if (!absl::IsUnavailable(status) || ++failures_ >= options_.attempts) return std::nullopt;
  absl::Duration delay = options_.first_delay;
  for (int i = 1; i < failures_ && delay < options_.longest_delay; ++i) delay *= 2;
  absl::BitGen random;
  delay *= absl::Uniform(random, 0.5, 1.0);
  return std::min(std::max(delay, RetryAfterOf(status)), options_.longest_delay);
}

absl::Status CallWithRetries(const RetryOptions& options,
                             const std::function<bool(absl::Duration)>& wait,
                             const std::function<absl::Status()>& call) {
  RetryPolicy policy(options);
  while (true) {
    absl::Status status = call();
    if (status.ok()) return status;
    const std::optional<absl::Duration> delay = policy.Failed(status);
    if (!delay) return status;
    if (!wait(*delay)) return absl::CancelledError("given up");
  }
}

}  // namespace marcoro
