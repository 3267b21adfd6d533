// marcoro-coordinator: the public gRPC front of Marcoro. Flags, wiring, and a drain on SIGTERM.
#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>
#include <signal.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <iostream>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "coordinator/admission/admission.h"
#include "coordinator/api/metrics.h"
#include "coordinator/api/served_model.h"
#include "coordinator/api/server.h"
#include "coordinator/config.h"
#include "coordinator/routing/worker_router.h"

namespace marcoro {
namespace {

constexpr int kExitStart = 1;
constexpr int kExitUsage = 2;

// What gRPC and protobuf have to say is of use to those who look for a fault, not to those who run
// the server.
void SetUpLogging(const std::string& level) {
  auto logger = spdlog::stderr_color_mt("coordinator");
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e %^%l%$ %n: %v");
  logger->set_level(spdlog::level::from_str(level));
  logger->flush_on(spdlog::level::trace);
  spdlog::set_default_logger(std::move(logger));
  gpr_set_log_function([](gpr_log_func_args* args) {
    if (args->severity == GPR_LOG_SEVERITY_ERROR) spdlog::debug("grpc: {}", args->message);
  });
  google::protobuf::SetLogHandler(
      [](google::protobuf::LogLevel, const char*, int, const std::string& message) {
        spdlog::debug("protobuf: {}", message);
      });
}

RouterOptions ToRouterOptions(const CoordinatorConfig& config) {
  RouterOptions options;
  options.targets = config.workers;
  options.policy = config.policy;
  options.start_timeout = config.start_timeout;
  options.replay_timeout = config.replay_timeout;
  return options;
}

ApiServerOptions ToServerOptions(const CoordinatorConfig& config) {
  ApiServerOptions options;
  options.listen = config.listen;
  options.max_message_bytes = config.max_message_bytes;
  options.limits.queue_timeout = config.queue_timeout;
  options.limits.write_timeout = config.write_timeout;
  return options;
}

MetricsSnapshot Snapshot(const WorkerRouter& router, const ApiServer& server) {
  const ReplicaSummary replicas = router.Summary();
  MetricsSnapshot snapshot;
  snapshot.replicas_configured = replicas.configured;
  snapshot.replicas_ready = replicas.ready;
  snapshot.sequences_running = replicas.running;
  snapshot.sequences_waiting = replicas.waiting;
  snapshot.replayed_sequences = router.Statistics().replays;
  snapshot.requests_in_flight = server.requests_in_flight();
  snapshot.draining = server.draining();
  return snapshot;
}

// A second signal ends the process at once.
void WaitForSignal(const sigset_t& signals) {
  int signal = 0;
  sigwait(&signals, &signal);
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
  spdlog::info("signal {}", signal == SIGTERM ? "SIGTERM" : "SIGINT");
}

absl::Status Serve(const CoordinatorConfig& config, const sigset_t& signals) {
  absl::StatusOr<std::unique_ptr<const ServedModel>> model =
      LoadServedModel({.directory = config.model,
                       .name = config.model_name,
                       .chat_template = config.chat_template,
                       .concurrency_cost = static_cast<uint32_t>(config.concurrency_cost),
                       .checkpoint = config.checkpoint_name});
  if (!model.ok()) return model.status();
  ApiMetrics metrics({(*model)->name, (*model)->architecture, MARCORO_VERSION});
  AdmissionOptions admission_options;
  admission_options.max_requests = static_cast<int64_t>(config.max_requests);
  Admission admission(admission_options);
  absl::StatusOr<std::unique_ptr<WorkerRouter>> router =
      WorkerRouter::Create(ToRouterOptions(config));
  if (!router.ok()) return router.status();
  absl::StatusOr<std::unique_ptr<ApiServer>> server =
      ApiServer::Start({**model, **router, admission, metrics}, ToServerOptions(config));
  if (!server.ok()) return server.status();
  metrics.SetSnapshotSource([&] { return Snapshot(**router, **server); });
  // Left to the process's end: its HTTP library takes up to two seconds to stop by itself.
  static MetricsServer* metrics_server = nullptr;
  if (!config.metrics.empty()) {
    auto started = MetricsServer::Start(config.metrics, metrics);
    if (!started.ok()) return started.status();
    metrics_server = started->release();
    spdlog::info("metrics on port {}", metrics_server->port());
  }
  spdlog::info("serving {} on {}, port {}, workers {}, chat template {}", (*model)->name,
               config.listen, (*server)->port(), config.workers,
               (*model)->chat_template ? std::string((*model)->chat_template->name()) : "none");
  WaitForSignal(signals);
  (*server)->Drain(config.drain_timeout);
  metrics.SetSnapshotSource(nullptr);
  return absl::OkStatus();
}

// Parses into `config`, which the flags were made for; or finds what is to be printed instead of
// serving.
absl::StatusOr<FlagTable::Print> ParseArguments(const FlagTable& flags, int argc, char** argv,
                                                const CoordinatorConfig& config) {
  const absl::StatusOr<FlagTable::Parsed> parsed = flags.Parse(Arguments(argc, argv));
  if (!parsed.ok()) return parsed.status();
  if (parsed->print != FlagTable::Print::kNothing) return parsed->print;
  if (!parsed->positional.empty()) {
    return absl::InvalidArgumentError("unexpected argument '" + parsed->positional.front() +
                                      "'; --help lists the flags");
  }
  if (absl::Status status = CheckConfig(config); !status.ok()) return status;
  return FlagTable::Print::kNothing;
}

void PrintInstead(FlagTable::Print print, const FlagTable& flags) {
  if (print == FlagTable::Print::kHelp) std::cout << flags.Help();
  if (print == FlagTable::Print::kHelpMarkdown) std::cout << flags.Markdown();
  if (print == FlagTable::Print::kVersion) {
    std::cout << "marcoro-coordinator " << MARCORO_VERSION << "\n";
  }
}

int Fail(const absl::Status& status, int exit_code) {
  // In one piece: others write to the same place.
  std::cerr << absl::StrCat("marcoro-coordinator: ", status.message(), "\n");
  return exit_code;
}

int Main(int argc, char** argv) {
  CoordinatorConfig config;
  const FlagTable flags = CoordinatorFlags(&config);
  const absl::StatusOr<FlagTable::Print> print = ParseArguments(flags, argc, argv, config);
  if (!print.ok()) return Fail(print.status(), kExitUsage);
  if (*print != FlagTable::Print::kNothing) {
    PrintInstead(*print, flags);
    return 0;
  }
  SetUpLogging(config.log_level);
  // Before any thread starts, so that all inherit it: only WaitForSignal sees them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  const absl::Status status = Serve(config, signals);
  return status.ok() ? 0 : Fail(status, kExitStart);
}

}  // namespace
}  // namespace marcoro

int main(int argc, char** argv) { return marcoro::Main(argc, argv); }
