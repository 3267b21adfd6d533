// Command line flags as a table: the one place from which a program's parsing, its --help and the
// README's table come.
//
// (absl/flags are process-wide; a program with subcommands needs one table for each.)
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace marcoro {

class FlagTable {
 public:
  // An optional is empty unless the flag is given; a vector gets one more text each time it is.
  using Target =
      std::variant<std::string*, bool*, int32_t*, int64_t*, uint64_t*, double*, absl::Duration*,
                   std::optional<bool>*, std::optional<int32_t>*, std::optional<uint64_t>*,
                   std::optional<double>*, std::vector<std::string>*>;

  // `usage` is the line that --help begins with.
  explicit FlagTable(std::string usage) : usage_(std::move(usage)) {}

  struct Spec {
    std::string value = {};  // what stands after "=" in the help: "HOST:PORT"; empty for booleans
    std::string help = {};   // what it is, its unit and its consequence
    std::vector<std::string> choices = {};  // if not empty, the only texts it takes
    // Bounds of numbers, and of durations in seconds.
    double minimum = 0;
    double maximum = 1e18;
    bool required = false;
  };
  // Declares --name. Its default is what *target holds now. The target must outlive the table's
  // use.
  void Add(std::string name, Target target, Spec spec);

  // --help, --help-markdown and --version are every program's: print that and leave with exit code
  // 0.
  enum class Print { kNothing, kHelp, kHelpMarkdown, kVersion };
  struct Parsed {
    std::vector<std::string> positional;
    Print print = Print::kNothing;
  };
  // Takes --name=value, --name value, and --name / --no-name for booleans; everything after a lone
  // -- is positional. INVALID_ARGUMENT names the flag and the value that does not fit; targets may
  // then be partly set.
  absl::StatusOr<Parsed> Parse(const std::vector<std::string>& arguments) const;

  // For programs that pass flags on: if arguments[*index] is a flag of this table, its canonical
  // form --name=value, with *index on the last argument that belongs to it; empty if the table does
  // not know it. INVALID_ARGUMENT if its value is missing.
  absl::StatusOr<std::string> Canonical(const std::vector<std::string>& arguments,
                                        size_t* index) const;

  std::string Help() const;
  // | flag | default | meaning | rows, for the README.
  std::string Markdown() const;

 private:
  struct Flag {
    std::string name;
    Target target;
    Spec spec;
    std::string default_text;
  };

  const Flag* Find(absl::string_view name) const;
  absl::StatusOr<std::pair<const Flag*, std::string>> Match(
      const std::vector<std::string>& arguments, size_t* index) const;

  std::string usage_;
  std::vector<Flag> flags_;
};

// The arguments after the program's name.
std::vector<std::string> Arguments(int argc, char** argv);

}  // namespace marcoro
