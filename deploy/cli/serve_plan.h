// What `marcoro serve` is asked for, and the processes that follow from it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "deploy/cli/provide_model.h"
#include "deploy/flags/flag_table.h"

namespace marcoro {

struct ServeConfig {
  std::string model;
  // Where the coordinator finds config.json and tokenizer; empty: in `model`.
  std::string coordinator_model;
  int32_t tp = 1;
  int32_t replicas = 1;
  int32_t threads = 0;  // per rank; 0: the processors, shared by all ranks
  std::string listen = "127.0.0.1:50051";
  std::string metrics = "127.0.0.1:9090";
  absl::Duration drain_timeout = absl::Seconds(30);
  // Flags of marcoro-worker and marcoro-coordinator, in canonical form.
  std::vector<std::string> worker_flags;
  std::vector<std::string> coordinator_flags;
};

FlagTable ServeFlags(ServeConfig* config);

// Flags that serve does not know go to the workers, to the coordinator, or to both, whoever knows
// them, and are checked as they would check them. INVALID_ARGUMENT otherwise. `parsed` tells of
// --help and the like.
absl::StatusOr<ServeConfig> ParseServe(const std::vector<std::string>& arguments,
                                       FlagTable::Parsed* parsed);

// Serves what was provided for config->model. A snapshot's folder is called by its commit, so
// clients shall know it by the hub's name, unless --model-name gives another.
void UseModel(const ProvidedModel& model, ServeConfig* config);
// The same for a recipe, whose model has a folder without weights for the coordinator, which tells
// clients the recipe's path in its place; it is called by the recipe's name.
void UseRecipeFolder(const std::string& folder, ServeConfig* config);

// Where the parts of a server listen.
struct ServeAddresses {
  std::vector<std::string> workers;         // rank 0 of each replica
  std::vector<std::string> worker_metrics;  // of each replica; empty without metrics
};

// One address on the loopback interface for each replica, on ports that are free now; metrics on
// the ports after the coordinator's.
absl::StatusOr<ServeAddresses> ChooseAddresses(const ServeConfig& config);

// Program and arguments of a process.
std::vector<std::string> WorkerArguments(const ServeConfig& config, const ServeAddresses& addresses,
                                         int replica, int rank, int processors,
                                         const std::string& programs);
std::vector<std::string> CoordinatorArguments(const ServeConfig& config,
                                              const ServeAddresses& addresses,
                                              const std::string& programs);

}  // namespace marcoro
