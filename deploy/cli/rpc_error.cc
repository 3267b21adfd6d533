#include "deploy/cli/rpc_error.h"

#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace marcoro {
namespace {

void AddViolations(const google::rpc::BadRequest& request, absl::string_view message,
                   std::vector<std::string>* notes) {
  for (const auto& violation : request.field_violations()) {
    const std::string note = absl::StrCat(violation.field(), ": ", violation.description());
    if (!absl::StrContains(message, note)) notes->push_back(note);
  }
}

std::vector<std::string> Notes(const std::string& details, absl::string_view message) {
  std::vector<std::string> notes;
  google::rpc::Status status;
  if (!status.ParseFromString(details)) return notes;
  for (const auto& any : status.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::RetryInfo retry;
    google::rpc::BadRequest request;
    if (any.UnpackTo(&info)) {
      notes.push_back(absl::StrCat("reason ", info.reason()));
    } else if (any.UnpackTo(&retry)) {
      const absl::Duration delay = absl::Seconds(retry.retry_delay().seconds()) +
                                   absl::Nanoseconds(retry.retry_delay().nanos());
      notes.push_back(absl::StrCat("try again after ", absl::FormatDuration(delay)));
    } else if (any.UnpackTo(&request)) {
      AddViolations(request, message, &notes);
    }
  }
  return notes;
}

}  // namespace

std::string OneLine(absl::string_view text) {
  std::string line(text);
  for (char& c : line) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) c = ' ';
  }
  return line;
}

absl::Status DescribeRpcError(int code, absl::string_view message, const std::string& details) {
  const auto known = static_cast<absl::StatusCode>(code);
  std::string name = absl::StatusCodeToString(known);
  if (name.empty()) name = absl::StrCat("code ", code);
  const std::vector<std::string> notes = Notes(details, message);
  const std::string line =
      absl::StrCat(name, ": ", message,
                   notes.empty() ? "" : absl::StrCat(" (", absl::StrJoin(notes, "; "), ")"));
  return absl::Status(known, OneLine(line));
}

}  // namespace marcoro
