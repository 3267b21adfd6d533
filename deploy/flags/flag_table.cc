#include "deploy/flags/flag_table.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"

namespace marcoro {
namespace {

struct Formatter {
  std::string operator()(const std::string* value) const { return *value; }
  std::string operator()(const bool* value) const { return *value ? "true" : "false"; }
  std::string operator()(const double* value) const { return absl::StrCat(*value); }
  std::string operator()(const absl::Duration* value) const { return absl::FormatDuration(*value); }
  std::string operator()(const std::vector<std::string>* value) const {
    return absl::StrJoin(*value, ", ");
  }
  template <typename Value>
  std::string operator()(const std::optional<Value>* value) const {
    return value->has_value() ? (*this)(&**value) : "";
  }
  template <typename Integer>
  std::string operator()(const Integer* value) const {
    return absl::StrCat(*value);
  }
};

std::string Range(const FlagTable::Spec& spec) {
  if (spec.maximum >= 1e18) return absl::StrCat("at least ", spec.minimum);
  return absl::StrCat("from ", spec.minimum, " to ", spec.maximum);
}

// Sets a target from text; otherwise says what the text must be.
struct Setter {
  absl::string_view text;
  const FlagTable::Spec& spec;

  bool InRange(double value) const { return value >= spec.minimum && value <= spec.maximum; }

  std::string operator()(std::string* target) const {
    if (!spec.choices.empty() &&
        std::find(spec.choices.begin(), spec.choices.end(), text) == spec.choices.end()) {
      return absl::StrCat("must be one of ", absl::StrJoin(spec.choices, ", "));
    }
    *target = std::string(text);
    return "";
  }
  std::string operator()(bool* target) const {
    return absl::SimpleAtob(text, target) ? "" : "must be true or false";
  }
  std::string operator()(double* target) const {
    if (absl::SimpleAtod(text, target) && std::isfinite(*target) && InRange(*target)) return "";
    return absl::StrCat("must be a number ", Range(spec));
  }
  std::string operator()(absl::Duration* target) const {
    if (absl::ParseDuration(text, target) && InRange(absl::ToDoubleSeconds(*target))) return "";
    return absl::StrCat("must be a duration such as 500ms, 30s or 2m, ", Range(spec), " seconds");
  }
  std::string operator()(std::vector<std::string>* target) const {
    target->emplace_back(text);
    return "";
  }
  template <typename Value>
  std::string operator()(std::optional<Value>* target) const {
    Value value{};
    std::string problem = (*this)(&value);
    if (problem.empty()) *target = value;
    return problem;
  }
  template <typename Integer>
  std::string operator()(Integer* target) const {
    if (absl::SimpleAtoi(text, target) && InRange(static_cast<double>(*target))) return "";
    return absl::StrCat("must be a whole number ", Range(spec));
  }
};

bool IsBoolean(const FlagTable::Target& target) {
  return std::holds_alternative<bool*>(target) ||
         std::holds_alternative<std::optional<bool>*>(target);
}

FlagTable::Print PrintOf(absl::string_view argument) {
  if (argument == "--help" || argument == "-h") return FlagTable::Print::kHelp;
  if (argument == "--help-markdown") return FlagTable::Print::kHelpMarkdown;
  if (argument == "--version") return FlagTable::Print::kVersion;
  return FlagTable::Print::kNothing;
}

}  // namespace

void FlagTable::Add(std::string name, Target target, Spec spec) {
  flags_.push_back({std::move(name), target, std::move(spec), std::visit(Formatter(), target)});
}

const FlagTable::Flag* FlagTable::Find(absl::string_view name) const {
  const auto found = std::find_if(flags_.begin(), flags_.end(),
                                  [name](const Flag& flag) { return flag.name == name; });
  return found == flags_.end() ? nullptr : &*found;
}

// The flag at arguments[*index] and its value, which may be the next argument.
absl::StatusOr<std::pair<const FlagTable::Flag*, std::string>> FlagTable::Match(
    const std::vector<std::string>& arguments, size_t* index) const {
  const absl::string_view argument = absl::string_view(arguments[*index]).substr(2);
  const size_t equals = argument.find('=');
  const bool has_value = equals != absl::string_view::npos;
  const absl::string_view name = argument.substr(0, equals);
  const Flag* flag = Find(name);
  if (flag == nullptr && !has_value && name.substr(0, 3) == "no-") {
    const Flag* positive = Find(name.substr(3));
    if (positive != nullptr && IsBoolean(positive->target)) {
      return std::make_pair(positive, "false");
    }
  }
  if (flag == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("unknown flag --", name, "; --help lists the flags"));
  }
  if (has_value) return std::make_pair(flag, std::string(argument.substr(equals + 1)));
  if (IsBoolean(flag->target)) return std::make_pair(flag, "true");
  if (*index + 1 == arguments.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--", name, " needs a value: --", name, "=", flag->spec.value));
  }
  return std::make_pair(flag, arguments[++*index]);
}

absl::StatusOr<FlagTable::Parsed> FlagTable::Parse(
    const std::vector<std::string>& arguments) const {
  Parsed parsed;
  std::vector<const Flag*> given;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument == "--") {
      parsed.positional.insert(parsed.positional.end(),
                               arguments.begin() + static_cast<ptrdiff_t>(i) + 1, arguments.end());
      break;
    }
    if (const Print print = PrintOf(argument); print != Print::kNothing) {
      parsed.print = print;
      return parsed;
    }
    if (argument.substr(0, 2) != "--") {
      parsed.positional.push_back(argument);
      continue;
    }
    auto match = Match(arguments, &i);
    if (!match.ok()) return match.status();
    const auto& [flag, value] = *match;
    if (std::string problem = std::visit(Setter{value, flag->spec}, flag->target);
        !problem.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("--", flag->name, "=", value, ": ", problem));
    }
    given.push_back(flag);
  }
  for (const Flag& flag : flags_) {
    if (flag.spec.required && std::find(given.begin(), given.end(), &flag) == given.end()) {
      return absl::InvalidArgumentError(absl::StrCat("--", flag.name, "=", flag.spec.value,
                                                     " is missing; --help lists the flags"));
    }
  }
  return parsed;
}

absl::StatusOr<std::string> FlagTable::Canonical(const std::vector<std::string>& arguments,
                                                 size_t* index) const {
  if (arguments[*index].substr(0, 2) != "--") return "";
  size_t last = *index;
  auto match = Match(arguments, &last);
  if (match.ok()) {
    *index = last;
    return absl::StrCat("--", match->first->name, "=", match->second);
  }
  const std::string name = arguments[*index].substr(2, arguments[*index].find('=') - 2);
  return Find(name) == nullptr ? absl::StatusOr<std::string>("") : match.status();
}

std::string FlagTable::Help() const {
  std::string help = absl::StrCat(usage_, "\n\n");
  for (const Flag& flag : flags_) {
    absl::StrAppend(
        &help, "  --", flag.name, flag.spec.value.empty() ? "" : "=", flag.spec.value, "\n      ",
        flag.spec.help, flag.spec.required ? " Required." : "",
        flag.default_text.empty() ? "" : absl::StrCat(" Default: ", flag.default_text, "."), "\n");
  }
  return help;
}

std::string FlagTable::Markdown() const {
  std::string table = "| flag | default | meaning |\n|---|---|---|\n";
  for (const Flag& flag : flags_) {
    const std::string value = absl::StrReplaceAll(flag.spec.value, {{"|", "\\|"}});
    const std::string shown =
        flag.default_text.empty() ? "" : absl::StrCat("`", flag.default_text, "`");
    absl::StrAppend(&table, "| `--", flag.name, value.empty() ? "" : "=", value, "` | ",
                    flag.spec.required ? "required" : shown, " | ", flag.spec.help, " |\n");
  }
  return table;
}

std::vector<std::string> Arguments(int argc, char** argv) {
  return std::vector<std::string>(argv + 1, argv + argc);
}

}  // namespace marcoro
