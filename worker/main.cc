// marcoro-worker: one rank of a tensor-parallel group. Rank 0 serves WorkerService and GroupService
// and runs the engine; its peers execute what it sends. Exit code 0 after a drain or shutdown, 1
// for what the outside caused, 70 from the watchdog.
#include <csignal>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "deploy/flags/flag_table.h"
#include "spdlog/sinks/stdout_color_sinks.h"
#include "spdlog/spdlog.h"
#include "worker/config.h"
#include "worker/process.h"

int main(int argc, char** argv) {
  using marcoro::FlagTable;
  marcoro::WorkerConfig config;
  const FlagTable table = marcoro::WorkerFlags(&config);
  const absl::StatusOr<FlagTable::Parsed> parsed = table.Parse(marcoro::Arguments(argc, argv));
  absl::Status status = parsed.status();
  if (parsed.ok()) {
    switch (parsed->print) {
      case FlagTable::Print::kHelp:
        std::fputs(table.Help().c_str(), stdout);
        return 0;
      case FlagTable::Print::kHelpMarkdown:
        std::fputs(table.Markdown().c_str(), stdout);
        return 0;
      case FlagTable::Print::kVersion:
        std::puts("marcoro-worker " MARCORO_VERSION);
        return 0;
      case FlagTable::Print::kNothing:
        break;
    }
    if (!parsed->positional.empty()) {
      status = absl::InvalidArgumentError(absl::StrCat(
          "unexpected argument '", parsed->positional[0], "'; --help lists the flags"));
    }
  }
  if (status.ok()) status = marcoro::CheckWorkerConfig(config);
  if (status.ok()) {
    spdlog::set_default_logger(spdlog::stderr_color_mt("worker"));
    spdlog::set_level(spdlog::level::from_str(config.log_level));
    spdlog::set_pattern(
        absl::StrCat("%Y-%m-%dT%H:%M:%S.%e %^%l%$ worker rank ", config.rank, ": %v"));
    status = marcoro::RunWorker(config);
  }
  if (status.ok()) return 0;
  std::fprintf(stderr, "marcoro-worker: %s\n", std::string(status.message()).c_str());
  return 1;
}
