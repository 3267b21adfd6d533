#include "deploy/cli/serve_plan.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "coordinator/config.h"
#include "deploy/cli/free_port.h"
#include "worker/config.h"

namespace marcoro {
namespace {

// host and port of "host:port".
absl::StatusOr<std::pair<std::string, int>> SplitAddress(const std::string& flag,
                                                         const std::string& address) {
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon == std::string::npos || colon == 0 ||
      !absl::SimpleAtoi(address.substr(colon + 1), &port) || port < 0 || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("--", flag, "=", address, ": must be host:port, for example 127.0.0.1:9090"));
  }
  return std::make_pair(address.substr(0, colon), port);
}

// Gives each argument to whom it belongs; those of serve itself, and what nobody knows, are
// returned.
absl::StatusOr<std::vector<std::string>> Distribute(const std::vector<std::string>& arguments,
                                                    ServeConfig* config) {
  const FlagTable own = ServeFlags(config);
  WorkerConfig worker;
  const FlagTable worker_table = WorkerFlags(&worker);
  CoordinatorConfig coordinator;
  const FlagTable coordinator_table = CoordinatorFlags(&coordinator);
  std::vector<std::string> rest;
  for (size_t i = 0; i < arguments.size(); ++i) {
    size_t last = i;
    bool taken = false;
    for (const auto& [table, flags] :
         {std::make_pair(&own, &rest), std::make_pair(&worker_table, &config->worker_flags),
          std::make_pair(&coordinator_table, &config->coordinator_flags)}) {
      size_t index = i;
      auto canonical = table->Canonical(arguments, &index);
      if (!canonical.ok()) return canonical.status();
      if (canonical->empty()) continue;
      flags->push_back(*std::move(canonical));
      taken = true;
      last = std::max(last, index);
      if (table == &own) break;  // serve's own flags mean something else to its parts
    }
    if (!taken) rest.push_back(arguments[i]);
    i = last;
  }
  return rest;
}

// The flags of the worker and the coordinator that serve decides itself.
absl::Status RefuseOwn(const std::vector<std::string>& flags) {
  for (const std::string& flag : flags) {
    for (const char* name : {"--rank=", "--world-size=", "--root=", "--workers="}) {
      if (flag.rfind(name, 0) == 0) {
        return absl::InvalidArgumentError(
            absl::StrCat(flag, ": serve sets this itself, from --tp and --replicas"));
      }
    }
  }
  return absl::OkStatus();
}

// Whether the table takes these flags; those that serve adds, such as --model, may be missing.
absl::Status CheckFlags(const FlagTable& table, const std::vector<std::string>& flags) {
  const absl::Status status = table.Parse(flags).status();
  return status.message().find("is missing") == absl::string_view::npos ? status : absl::OkStatus();
}

}  // namespace

FlagTable ServeFlags(ServeConfig* config) {
  FlagTable table(
      "usage: marcoro serve --model=MODEL [--tp=N] [--replicas=R] [flags]\n\n"
      "Starts a coordinator and R groups of N tensor-parallel workers on this host, starts again "
      "what dies, and leaves no process "
      "behind.\nEvery other flag of marcoro-worker and marcoro-coordinator is passed on to whom it "
      "belongs.");
  table.Add(
      "model", &config->model,
      {.value = "MODEL",
       .help =
           "Folder of a checkpoint, merge recipe (.yml), or ORG/NAME[@REVISION] of a hub, which "
           "is downloaded if the cache does not have it.",
       .required = true});
  table.Add("tp", &config->tp,
            {.value = "N",
             .help = "Tensor-parallel ranks of each replica: 1, 2, 4 or 8.",
             .minimum = 1,
             .maximum = 8});
  table.Add("replicas", &config->replicas,
            {.value = "R",
             .help = "Groups behind the coordinator; when one dies its requests go on in another.",
             .minimum = 1,
             .maximum = 64});
  table.Add("threads", &config->threads,
            {.value = "N",
             .help = "Threads that compute, per rank; 0: the processors, shared by all ranks.",
             .maximum = 1024});
  table.Add("listen", &config->listen,
            {.value = "HOST:PORT", .help = "Address of the public gRPC API."});
  table.Add("metrics", &config->metrics,
            {.value = "HOST:PORT",
             .help = "Address of the coordinator's Prometheus endpoint; replica i's rank 0 has the "
                     "port 1 + i after it. Empty: none."});
  table.Add("drain-timeout", &config->drain_timeout,
            {.value = "DURATION",
             .help = "How long running requests may go on after SIGTERM or Ctrl-C.",
             .maximum = 86400});
  return table;
}

absl::StatusOr<ServeConfig> ParseServe(const std::vector<std::string>& arguments,
                                       FlagTable::Parsed* parsed) {
  ServeConfig config;
  auto rest = Distribute(arguments, &config);
  if (!rest.ok()) return rest.status();
  auto own = ServeFlags(&config).Parse(*rest);
  if (!own.ok()) return own.status();
  *parsed = *std::move(own);
  if (parsed->print != FlagTable::Print::kNothing) return config;
  if (!parsed->positional.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("unexpected argument '", parsed->positional[0], "'; --help lists the flags"));
  }
  for (const auto* flags : {&config.worker_flags, &config.coordinator_flags}) {
    if (absl::Status status = RefuseOwn(*flags); !status.ok()) return status;
  }
  WorkerConfig worker;
  if (absl::Status status = CheckFlags(WorkerFlags(&worker), config.worker_flags); !status.ok())
    return status;
  CoordinatorConfig coordinator;
  if (absl::Status status = CheckFlags(CoordinatorFlags(&coordinator), config.coordinator_flags);
      !status.ok())
    return status;
  if (absl::Status status = CheckWorkerConfig(worker); !status.ok()) return status;
  return config;
}

void UseModel(const ProvidedModel& model, ServeConfig* config) {
  config->model = model.path;
  // In front: what is given last counts.
  std::vector<std::string>& flags = config->coordinator_flags;
  if (!model.name.empty()) flags.insert(flags.begin(), "--model-name=" + model.name);
}

void UseRecipeFolder(const std::string& folder, ServeConfig* config) {
  config->coordinator_model = folder;
  std::vector<std::string>& flags = config->coordinator_flags;
  flags.insert(flags.begin(),
               {"--model-name=" + std::filesystem::path(config->model).stem().string(),
                "--checkpoint-name=" + config->model});
}

absl::StatusOr<ServeAddresses> ChooseAddresses(const ServeConfig& config) {
  // The launcher must know where its parts are, so it cannot leave the choice of a port to them.
  const auto listen = SplitAddress("listen", config.listen);
  if (!listen.ok()) return listen.status();
  if (listen->second == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--listen=", config.listen, ": serve needs a port, not 0"));
  }
  ServeAddresses addresses;
  std::vector<FreePort> ports;  // held until all are found, so that each is another
  for (int replica = 0; replica < config.replicas; ++replica) {
    absl::StatusOr<FreePort> port = FreePort::Find();
    if (!port.ok()) return port.status();
    addresses.workers.push_back(absl::StrCat("127.0.0.1:", port->number()));
    ports.push_back(*std::move(port));
  }
  if (config.metrics.empty()) return addresses;
  const auto metrics = SplitAddress("metrics", config.metrics);
  if (!metrics.ok()) return metrics.status();
  for (int replica = 0; replica < config.replicas; ++replica) {
    addresses.worker_metrics.push_back(
        absl::StrCat(metrics->first, ":", metrics->second + 1 + replica));
  }
  return addresses;
}

std::vector<std::string> WorkerArguments(const ServeConfig& config, const ServeAddresses& addresses,
                                         int replica, int rank, int processors,
                                         const std::string& programs) {
  const int threads =
      config.threads > 0 ? config.threads : std::max(1, processors / (config.tp * config.replicas));
  std::vector<std::string> arguments = {
      programs + "/marcoro-worker", absl::StrCat("--model=", config.model),
      absl::StrCat("--world-size=", config.tp), absl::StrCat("--rank=", rank),
      absl::StrCat("--threads=", threads)};
  if (rank == 0) {
    arguments.push_back(absl::StrCat("--listen=", addresses.workers[replica]));
    if (!addresses.worker_metrics.empty()) {
      arguments.push_back(absl::StrCat("--metrics=", addresses.worker_metrics[replica]));
    }
  } else {
    arguments.push_back(absl::StrCat("--root=", addresses.workers[replica]));
  }
  arguments.push_back(absl::StrCat("--drain-timeout=", absl::FormatDuration(config.drain_timeout)));
  arguments.insert(arguments.end(), config.worker_flags.begin(), config.worker_flags.end());
  return arguments;
}

std::vector<std::string> CoordinatorArguments(const ServeConfig& config,
                                              const ServeAddresses& addresses,
                                              const std::string& programs) {
  std::vector<std::string> arguments = {
      programs + "/marcoro-coordinator",
      absl::StrCat("--model=",
                   config.coordinator_model.empty() ? config.model : config.coordinator_model),
      absl::StrCat("--workers=", absl::StrJoin(addresses.workers, ",")),
      absl::StrCat("--listen=", config.listen),
      absl::StrCat("--metrics=", config.metrics),
      absl::StrCat("--drain-timeout=", absl::FormatDuration(config.drain_timeout))};
  arguments.insert(arguments.end(), config.coordinator_flags.begin(),
                   config.coordinator_flags.end());
  return arguments;
}

}  // namespace marcoro
