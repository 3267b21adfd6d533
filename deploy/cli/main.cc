// marcoro: one program for those who run, use and measure a server.
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "deploy/cli/command.h"
#include "deploy/flags/flag_table.h"

namespace {

struct Command {
  const char* name;
  int (*run)(const std::vector<std::string>& arguments);
  const char* summary;
};

constexpr Command kCommands[] = {
    {"serve", marcoro::ServeCommand, "serve a model on this host"},
    {"generate", marcoro::GenerateCommand, "continue a prompt, streaming"},
    {"chat", marcoro::ChatCommand, "talk with the model"},
    {"score", marcoro::ScoreCommand, "tell how likely the model finds a text"},
    {"bench", marcoro::BenchCommand, "put load on a server and measure its answers"},
    {"inspect", marcoro::InspectCommand, "tell what a checkpoint is"},
    {"eval", marcoro::EvalCommand, "compare models: perplexity and accuracy"},
    {"pull", marcoro::PullCommand, "download a model from a hub"},
    {"merge", marcoro::MergeCommand, "write the checkpoint that a recipe describes"},
    {"quantize", marcoro::QuantizeCommand, "write a checkpoint in FP8"},
};

void PrintUsage(FILE* file) {
  std::fputs("usage: marcoro COMMAND [flags]; marcoro COMMAND --help tells more\n\n", file);
  for (const Command& command : kCommands)
    std::fprintf(file, "  %-10s %s\n", command.name, command.summary);
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> arguments = marcoro::Arguments(argc, argv);
  if (arguments.empty()) {
    PrintUsage(stderr);
    return 2;
  }
  const std::string name = arguments[0];
  arguments.erase(arguments.begin());
  if (name == "help" || name == "--help" || name == "-h") {
    PrintUsage(stdout);
    return 0;
  }
  if (name == "--version") {
    std::puts("marcoro " MARCORO_VERSION);
    return 0;
  }
  for (const Command& command : kCommands) {
    if (name == command.name) return command.run(arguments);
  }
  std::fprintf(stderr, "marcoro: unknown command '%s'; marcoro help lists them\n", name.c_str());
  return 2;
}
