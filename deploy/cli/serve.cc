// marcoro serve: a coordinator and its workers on one host, as one process tree.
#include <grpcpp/grpcpp.h>
#include <sched.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "deploy/cli/command.h"
#include "deploy/cli/model_input.h"
#include "deploy/cli/provide_model.h"
#include "deploy/cli/recipe_folder.h"
#include "deploy/cli/serve_plan.h"
#include "deploy/cli/supervisor.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "marcoro/worker/v1/worker.grpc.pb.h"
#include "spdlog/sinks/stdout_color_sinks.h"
#include "spdlog/spdlog.h"

namespace marcoro {
namespace {

constexpr absl::Duration kProbeTimeout = absl::Milliseconds(500);
constexpr absl::Duration kConnectTimeout = absl::Milliseconds(100);

void SetDeadline(grpc::ClientContext* context) {
  context->set_deadline(absl::ToChronoTime(absl::Now() + kProbeTimeout));
}

std::shared_ptr<grpc::Channel> Channel(const std::string& address) {
  grpc::ChannelArguments arguments;
  // A process that starts shall be found at once: 100 ms are the least that gRPC takes, a second is
  // its own first pause, whatever the longest may be.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 200);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

// gRPC looks after a connection only while somebody waits for it: a call that fails at once,
// because nobody listens yet, would leave the next attempt to a poller that comes by every five
// seconds.
bool IsConnected(grpc::Channel* channel) {
  return channel->WaitForConnected(absl::ToChronoTime(absl::Now() + kConnectTimeout));
}

bool CoordinatorIsReady(const std::shared_ptr<grpc::Channel>& channel) {
  if (!IsConnected(channel.get())) return false;
  grpc::ClientContext context;
  SetDeadline(&context);
  grpc::health::v1::HealthCheckRequest request;
  request.set_service("marcoro.v1.InferenceService");
  grpc::health::v1::HealthCheckResponse response;
  const grpc::Status status =
      grpc::health::v1::Health::NewStub(channel)->Check(&context, request, &response);
  return status.ok() && response.status() == grpc::health::v1::HealthCheckResponse::SERVING;
}

bool WorkerIsReady(const std::shared_ptr<grpc::Channel>& channel) {
  if (!IsConnected(channel.get())) return false;
  grpc::ClientContext context;
  SetDeadline(&context);
  const auto stream = worker::v1::WorkerService::NewStub(channel)->Connect(&context);
  worker::v1::ConnectResponse response;
  const bool ready =
      stream->Read(&response) && response.status().state() == worker::v1::WORKER_STATE_READY;
  context.TryCancel();
  stream->Finish();
  return ready;
}

std::vector<Unit> MakeUnits(const ServeConfig& config, const ServeAddresses& addresses) {
  cpu_set_t set;
  CPU_ZERO(&set);
  const int processors = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
  const std::string programs = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  std::vector<Unit> units;
  units.push_back(
      {.name = "coordinator",
       .processes = {CoordinatorArguments(config, addresses, programs)},
       .ready = [channel = Channel(config.listen)] { return CoordinatorIsReady(channel); }});
  for (int replica = 0; replica < config.replicas; ++replica) {
    Unit unit;
    unit.name = absl::StrCat("replica ", replica);
    for (int rank = 0; rank < config.tp; ++rank) {
      unit.processes.push_back(
          WorkerArguments(config, addresses, replica, rank, processors, programs));
    }
    unit.ready = [channel = Channel(addresses.workers[replica])] { return WorkerIsReady(channel); };
    units.push_back(std::move(unit));
  }
  return units;
}

absl::Status Serve(ServeConfig config) {
  const absl::StatusOr<ProvidedModel> model = ProvideModel(config.model, PullSettings());
  if (!model.ok()) return model.status();
  // Told here once, not by every process that would look for it.
  std::error_code error;
  if (!std::filesystem::exists(model->path, error)) {
    return absl::NotFoundError(absl::StrCat(
        "--model=", config.model, " is no folder or recipe here, and no name ORG/NAME of a hub"));
  }
  UseModel(*model, &config);
  std::unique_ptr<ScratchFolder> folder;
  if (IsRecipe(config.model)) {
    auto created = MakeRecipeFolder(config.model);
    if (!created.ok()) return created.status();
    folder = *std::move(created);
    UseRecipeFolder(folder->path(), &config);
  }
  auto addresses = ChooseAddresses(config);
  if (!addresses.ok()) return addresses.status();
  Supervisor::BlockSignals();  // before MakeUnits, which starts gRPC's threads
  Supervisor supervisor(MakeUnits(config, *addresses),
                        {.drain_timeout = config.drain_timeout, .on_ready = [&] {
                           std::printf("ready: grpc on %s, metrics on %s\n", config.listen.c_str(),
                                       config.metrics.empty() ? "none" : config.metrics.c_str());
                           std::fflush(stdout);
                         }});
  return supervisor.Run();
}

}  // namespace

int ServeCommand(const std::vector<std::string>& arguments) {
  FlagTable::Parsed parsed;
  const absl::StatusOr<ServeConfig> config = ParseServe(arguments, &parsed);
  if (!config.ok()) {
    std::fprintf(stderr, "marcoro serve: %s\n", std::string(config.status().message()).c_str());
    return 2;
  }
  ServeConfig defaults;
  switch (parsed.print) {
    case FlagTable::Print::kHelp:
      std::fputs(ServeFlags(&defaults).Help().c_str(), stdout);
      return 0;
    case FlagTable::Print::kHelpMarkdown:
      std::fputs(ServeFlags(&defaults).Markdown().c_str(), stdout);
      return 0;
    case FlagTable::Print::kVersion:
      std::puts("marcoro " MARCORO_VERSION);
      return 0;
    case FlagTable::Print::kNothing:
      break;
  }
  spdlog::set_default_logger(spdlog::stderr_color_mt("serve"));
  spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%e %^%l%$ serve: %v");
  const absl::Status status = Serve(*config);
  if (status.ok()) return 0;
  std::fprintf(stderr, "marcoro serve: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace marcoro
