#include "deploy/cli/command_line.h"

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "deploy/cli/rpc_error.h"

namespace marcoro {
namespace {

void PrintError(absl::string_view command, absl::string_view message) {
  const std::string line = absl::StrCat("marcoro ", command, ": ", OneLine(message), "\n");
  std::fflush(stdout);
  std::fputs(line.c_str(), stderr);
}

}  // namespace

CommandArguments ParseCommand(absl::string_view command, const FlagTable& table,
                              const std::vector<std::string>& arguments, size_t most_positional) {
  CommandArguments result;
  absl::StatusOr<FlagTable::Parsed> parsed = table.Parse(arguments);
  if (!parsed.ok()) {
    result.exit_code = UsageError(command, parsed.status().message());
    return result;
  }
  switch (parsed->print) {
    case FlagTable::Print::kHelp:
      std::fputs(table.Help().c_str(), stdout);
      result.exit_code = 0;
      return result;
    case FlagTable::Print::kHelpMarkdown:
      std::fputs(table.Markdown().c_str(), stdout);
      result.exit_code = 0;
      return result;
    case FlagTable::Print::kVersion:
      std::puts("marcoro " MARCORO_VERSION);
      result.exit_code = 0;
      return result;
    case FlagTable::Print::kNothing:
      break;
  }
  if (parsed->positional.size() > most_positional) {
    result.exit_code = UsageError(
        command, absl::StrCat("unexpected argument '", parsed->positional[most_positional],
                              "'; --help lists the flags"));
    return result;
  }
  result.positional = std::move(parsed->positional);
  return result;
}

int UsageError(absl::string_view command, absl::string_view message) {
  PrintError(command, message);
  return kExitUsage;
}

int Failure(absl::string_view command, const absl::Status& status) {
  PrintError(command, status.message());
  return kExitFailure;
}

}  // namespace marcoro
