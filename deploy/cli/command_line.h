// What every subcommand does with its arguments, and how it ends.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "deploy/flags/flag_table.h"

namespace marcoro {

inline constexpr int kExitFailure = 1;
inline constexpr int kExitUsage = 2;

struct CommandArguments {
  std::vector<std::string> positional;
  std::optional<int> exit_code;  // set if the command ends here: after --help, or wrong usage
};

// Parses the arguments into the table's targets, and prints what --help and the like ask for. Wrong
// usage (also more than `most_positional` positional arguments) is told on standard error.
CommandArguments ParseCommand(absl::string_view command, const FlagTable& table,
                              const std::vector<std::string>& arguments, size_t most_positional);

// One line on standard error, "marcoro COMMAND: message"; returns the exit code.
int UsageError(absl::string_view command, absl::string_view message);
int Failure(absl::string_view command, const absl::Status& status);

}  // namespace marcoro
