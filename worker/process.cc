#include "worker/process.h"

#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/backend.h"
#include "spdlog/spdlog.h"
#include "worker/collective/nccl.h"
#include "worker/engine/engine.h"
#include "worker/engine/group_executor.h"
#include "worker/fingerprint.h"
#include "worker/group/group.h"
#include "worker/group/group_service.h"
#include "worker/group/host_identity.h"
#include "worker/group/step_broadcast.h"
#include "worker/group/watchdog.h"
#include "worker/kv_cache_size.h"
#include "worker/model/transformer.h"
#include "worker/service/metrics.h"
#include "worker/service/worker_service.h"
#include "worker/signals.h"
#include "worker/weights/checkpoint_source.h"
#include "worker/weights/hub_cache.h"
#include "worker/weights/identity.h"
#include "worker/weights/loader.h"
#include "worker/weights/merge/merge_source.h"
#include "worker/weights/merge/plan.h"
#include "worker/weights/progress.h"
#include "worker/weights/random_source.h"

namespace marcoro {
namespace {

// What is known before anything large is read.
struct OpenedModel {
  ModelConfig config;
  std::unique_ptr<TensorSource> source;
  std::unique_ptr<Backend> backend;
  std::string fingerprint;
  StepBounds bounds;
};

// Rank 0's gRPC server and what it serves.
struct Edge {
  Edge() = default;
  Edge(Edge&&) = default;
  // Ends the streams: without a deadline gRPC would wait for coordinators to leave.
  ~Edge() {
    if (server != nullptr) server->Shutdown(absl::ToChronoTime(absl::Now() + absl::Seconds(1)));
  }

  // For Kubernetes' probes: the service's name is ready or not, "" is always alive.
  void SetReady(bool ready) const {
    server->GetHealthCheckService()->SetServingStatus("marcoro.worker.v1.WorkerService", ready);
  }

  std::unique_ptr<GroupService> group;
  std::unique_ptr<WorkerService> worker;
  std::unique_ptr<grpc::Server> server;
  std::string address;  // with the port that was bound
};

int ThreadsPerRank(const WorkerConfig& config) {
  if (config.threads > 0) return config.threads;
  cpu_set_t set;
  CPU_ZERO(&set);
  const int processors = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
  return std::max(1, processors / config.world_size);
}

bool IsRecipe(const std::string& model) {
  return absl::EndsWith(model, ".yml") || absl::EndsWith(model, ".yaml");
}

// What clients and metrics call the model: the folder, or the recipe without its ending.
std::string ModelName(const WorkerConfig& config) {
  const std::filesystem::path path = std::filesystem::path(config.model).lexically_normal();
  return (IsRecipe(config.model) ? path.stem() : path.filename()).string();
}

absl::Status OpenCheckpoint(const WorkerConfig& config, OpenedModel& model) {
  auto model_config = LoadModelConfig(config.model);
  if (!model_config.ok()) return model_config.status();
  model.config = *std::move(model_config);
  if (config.load_format == "random") return absl::OkStatus();
  auto source = CheckpointSource::Open(config.model);
  if (!source.ok()) return source.status();
  model.source = *std::move(source);
  return absl::OkStatus();
}

// The parents that a recipe names are merged while they are loaded.
absl::Status OpenRecipe(const WorkerConfig& config, OpenedModel& model) {
  auto plan = PlanMerge(config.model, [](const std::string& name) { return FindInHubCache(name); });
  if (!plan.ok()) return plan.status();
  if (config.rank == 0) {
    for (const std::string& warning : plan->warnings) spdlog::warn("{}", warning);
  }
  model.config = plan->config;
  if (config.load_format == "random") return absl::OkStatus();
  auto source = MergeSource::Open(*std::move(plan));
  if (!source.ok()) return source.status();
  model.source = *std::move(source);
  return absl::OkStatus();
}

// The files: what the model is and where its weights come from. Returns what tells these weights
// from others.
absl::StatusOr<std::string> OpenFiles(const WorkerConfig& config, OpenedModel& model) {
  absl::Status opened =
      IsRecipe(config.model) ? OpenRecipe(config, model) : OpenCheckpoint(config, model);
  if (!opened.ok()) return opened;
  if (absl::Status status = CheckTensorParallel(model.config, config.world_size); !status.ok())
    return status;
  if (config.load_format == "random") {
    model.source = std::make_unique<RandomSource>(model.config, config.random_seed);
  }
  return WeightsIdentity(*model.source, model.config);
}

absl::StatusOr<OpenedModel> OpenModel(const WorkerConfig& config) {
  OpenedModel model;
  absl::StatusOr<std::string> identity = absl::UnknownError("the files are not open yet");
  // Beside the backend: a driver takes long to open a GPU, which then is this thread's.
  std::thread files([&] { identity = OpenFiles(config, model); });
  auto backend = CreateBackend({.name = config.backend,
                                .threads = ThreadsPerRank(config),
                                .activations = config.activation_dtype(),
                                .device = config.device,
                                .rank = config.rank,
                                .cuda_graphs = config.cuda_graphs});
  files.join();
  if (!identity.ok()) return identity.status();
  if (!backend.ok()) return backend.status();
  model.backend = *std::move(backend);
  spdlog::info("backend {}", model.backend->Description());

  model.fingerprint =
      NumericsFingerprint(*identity, {.weights_format = config.weights,
                                      .kernel_family = std::string(model.backend->name()),
                                      .activations = config.activations,
                                      .kv_format = config.kv});
  model.bounds.tokens = config.max_step_tokens;
  model.bounds.logit_rows = std::min(config.max_logit_rows, config.max_step_tokens);
  model.bounds.context_length = std::min(config.context_length, model.config.max_positions);
  return model;
}

absl::StatusOr<Edge> StartEdge(const WorkerConfig& config, const OpenedModel& model) {
  Edge edge;
  edge.group = std::make_unique<GroupService>(
      GroupServiceOptions{.world_size = config.world_size, .fingerprint = model.fingerprint});
  edge.worker =
      std::make_unique<WorkerService>(WorkerFacts{.numerics_fingerprint = model.fingerprint,
                                                  .tensor_parallel = config.world_size,
                                                  .context_length = model.bounds.context_length,
                                                  .vocabulary_size = model.config.vocabulary_size,
                                                  .parameter_count = model.config.parameter_count(),
                                                  .quantization = config.weights,
                                                  .max_waiting = config.max_waiting,
                                                  .max_running = config.max_sequences});
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(config.listen, grpc::InsecureServerCredentials(), &port);
  // Two workers on one port would answer in turns.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 10000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1000);
  builder.SetMaxReceiveMessageSize(16 << 20);
  builder.RegisterService(edge.worker.get());
  builder.RegisterService(edge.group->service());
  edge.server = builder.BuildAndStart();
  if (edge.server == nullptr || port == 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", config.listen,
                     ": is the port in use? --listen=HOST:PORT takes another"));
  }
  edge.SetReady(false);
  edge.address = absl::StrCat(config.listen.substr(0, config.listen.rfind(':')), ":", port);
  return edge;
}

absl::StatusOr<std::unique_ptr<Group>> JoinGroup(const WorkerConfig& config,
                                                 const OpenedModel& model, GroupService* service) {
  GroupOptions options = {.rank = config.rank,
                          .world_size = config.world_size,
                          .root_address = config.root,
                          .fingerprint = model.fingerprint,
                          .host = HostIdentity(),
                          .interface = config.interface,
                          .join_timeout = config.join_timeout,
                          .collective_timeout = config.collective_timeout,
                          .heartbeat_interval = config.heartbeat_interval};
  auto device = ParseDeviceCollective(config.collective);
  if (!device.ok()) return device.status();
  // What GPUs take between them leaves the choice for the plan to the group.
  if (*device == DeviceCollective::kAuto || *device == DeviceCollective::kStaged) {
    auto transport = ParseTransport(config.collective);
    if (!transport.ok()) return transport.status();
    options.transport = *transport;
  }
  if (!model.backend->host_memory()) {
    options.make_device_communicator = [&config, &model, choice = *device](
                                           KeyStore& keys, Communicator& host,
                                           absl::Duration time_left) {
      return MakeNcclCommunicator({.rank = config.rank,
                                   .size = config.world_size,
                                   .host = HostIdentity(),
                                   .stream = model.backend->stream(),
                                   .hidden_size = model.config.hidden_size,
                                   .collective = choice,
                                   .connect_timeout = time_left,
                                   .timeout = config.collective_timeout,
                                   .on_failure =
                                       [](const absl::Status& status) {
                                         Watchdog::ExitProcess(std::string(status.message()));
                                       }},
                                  keys, host);
    };
  }
  return Group::Join(options, service);
}

absl::Status ExplainMemory(const absl::Status& status, const WorkerConfig& config) {
  if (status.code() != absl::StatusCode::kResourceExhausted) return status;
  return absl::ResourceExhaustedError(
      absl::StrCat(status.message(), "; use ", config.weights == "fp8" ? "" : "--weights=fp8, ",
                   "more tensor-parallel ranks on more hosts, a smaller --kv-tokens, or a machine "
                   "with more memory"));
}

// Rank 0 decides the size of the KV cache, since the scheduler is there; every rank allocates as
// much.
absl::StatusOr<int32_t> AgreeOnKvBlocks(const WorkerConfig& config, const OpenedModel& model,
                                        Group& group) {
  int64_t tokens = config.kv_tokens;
  if (group.rank() == 0 && tokens == 0) {
    const absl::StatusOr<int64_t> size =
        SizeKvCache(config, model.config, model.bounds, *model.backend);
    if (!size.ok()) return size.status();
    tokens = *size;
  }
  std::string message = absl::StrCat((tokens + kKvBlockTokens - 1) / kKvBlockTokens);
  if (absl::Status status = group.control().BroadcastFromRoot(&message); !status.ok())
    return status;
  int32_t blocks = 0;
  if (!absl::SimpleAtoi(message, &blocks) || blocks < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("--kv-tokens=", config.kv_tokens, " is not a possible size"));
  }
  return blocks;
}

absl::StatusOr<ModelParameters> LoadShard(const WorkerConfig& config, OpenedModel& model) {
  const Shard shard{.rank = config.rank, .world_size = config.world_size};
  LoadOptions options;
  options.linear_dtype = config.linear_dtype();
  options.allocated = [&] {
    return CheckRoomForKvCache(config, model.config, model.bounds, *model.backend);
  };
  const absl::Time begin = absl::Now();
  // One rank's progress stands for the group's: all read at the same pace.
  std::optional<ProgressReporter> progress;
  if (config.rank == 0) {
    options.progress = [&progress](uint64_t done, uint64_t total) {
      // Begins with the first bytes: making room for the shard comes before and is no part of the
      // rate.
      if (!progress.has_value()) progress.emplace(ProgressOptions::ForStderr("loading"));
      progress->Update(done, total);
    };
  }
  auto parameters = LoadParameters(*model.source, model.config, shard, options, *model.backend);
  if (!parameters.ok()) return ExplainMemory(parameters.status(), config);
  spdlog::info("loaded in {:.1f} s: backend {}, {} thread(s), weights {}",
               absl::ToDoubleSeconds(absl::Now() - begin), model.backend->name(),
               model.backend->threads(), config.weights);
  return parameters;
}

absl::StatusOr<std::unique_ptr<Transformer>> MakeTransformer(const WorkerConfig& config,
                                                             OpenedModel& model,
                                                             ModelParameters parameters,
                                                             Group& group) {
  const Shard shard{.rank = config.rank, .world_size = config.world_size};
  auto blocks = AgreeOnKvBlocks(config, model, group);
  if (!blocks.ok()) return ExplainMemory(blocks.status(), config);
  auto transformer = Transformer::Create(model.config, shard, std::move(parameters), model.bounds,
                                         *blocks, *model.backend, group.data(), config.kv_format());
  if (!transformer.ok()) return ExplainMemory(transformer.status(), config);
  spdlog::info("KV cache of {} tokens in {}", int64_t{*blocks} * kKvBlockTokens,
               config.kv == "bf16" ? config.activations : config.kv);
  return transformer;
}

// Serves until a signal has drained the engine, or until the group is lost.
absl::Status ServeRoot(const WorkerConfig& config, OpenedModel& model, Edge& edge,
                       Transformer& transformer, StepBroadcast& broadcast, Watchdog& watchdog,
                       WorkerMetrics& metrics, TerminationSignals& signals) {
  GroupExecutor executor(broadcast, transformer, watchdog);
  EngineOptions options;
  options.heartbeat_interval = config.heartbeat_interval;
  options.vocabulary = model.config.vocabulary_size;
  options.scheduler = {.kv_blocks = transformer.kv_blocks(),
                       .context_length = model.bounds.context_length,
                       .max_sequences_per_step = config.max_sequences,
                       .max_tokens_per_step = model.bounds.tokens,
                       .max_logit_rows_per_step = model.bounds.logit_rows,
                       .max_waiting = config.max_waiting,
                       .prefix_cache = config.prefix_cache};
  Engine engine(options, *model.backend, executor,
                [&](const StepRecord& record) { metrics.ObserveStep(record); });
  metrics.SetSnapshotSource([&engine] { return engine.snapshot(); });
  signals.Handle([&] {
    spdlog::info("draining for at most {}", absl::FormatDuration(config.drain_timeout));
    edge.SetReady(false);
    edge.worker->Drain();
    if (!engine.WaitIdle(absl::Now() + config.drain_timeout))
      spdlog::warn("the drain timeout ended running sequences");
    engine.Stop();
  });
  edge.worker->Attach(&engine);
  edge.SetReady(true);
  spdlog::info("ready on {} (fingerprint {})", edge.address, model.fingerprint);
  const absl::Status status = engine.Run();
  // From here to the engine's end: nobody may hold on to it.
  signals.Release();
  metrics.SetSnapshotSource(nullptr);
  edge.server->Shutdown(absl::ToChronoTime(absl::Now() + absl::Seconds(1)));
  edge.worker->Detach();
  if (!status.ok())
    return absl::Status(status.code(), absl::StrCat("the group is lost: ", status.message()));
  return broadcast.SendShutdown();
}

absl::Status ServePeer(Transformer& transformer, StepBroadcast& broadcast, Watchdog& watchdog,
                       TerminationSignals& signals) {
  signals.Handle([] { spdlog::info("waiting for rank 0 to end the group"); });
  spdlog::info("ready");
  const absl::Status status = RunPeer(broadcast, transformer, watchdog);
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat("the group is lost: ", status.message()));
}

}  // namespace

absl::Status RunWorker(const WorkerConfig& config) {
  TerminationSignals signals;
  auto model = OpenModel(config);
  if (!model.ok()) return ExplainMemory(model.status(), config);

  WorkerMetrics metrics({.model = ModelName(config),
                         .numerics_fingerprint = model->fingerprint,
                         .backend = std::string(model->backend->name()),
                         .quantization = config.weights,
                         .tensor_parallel = config.world_size});
  if (!config.metrics.empty()) {
    auto server = WorkerMetrics::Server::Start(config.metrics, metrics);
    if (!server.ok()) return server.status();
    // Left to the process's end: its HTTP library takes up to two seconds to stop by itself.
    static std::atomic<WorkerMetrics::Server*> kept;
    kept = server->release();
  }
  std::optional<Edge> edge;
  if (config.rank == 0) {
    auto started = StartEdge(config, *model);
    if (!started.ok()) return started.status();
    edge.emplace(*std::move(started));
    spdlog::info("loading {} behind {}", model->source->Description(), edge->address);
  }
  auto parameters = LoadShard(config, *model);
  if (!parameters.ok()) return parameters.status();
  // Joined once the shard is there: from then on ranks expect to hear of each other.
  auto group = JoinGroup(config, *model, edge.has_value() ? edge->group.get() : nullptr);
  if (!group.ok()) return group.status();
  auto transformer = MakeTransformer(config, *model, *std::move(parameters), **group);
  if (!transformer.ok()) return transformer.status();

  StepBroadcast broadcast(&(*group)->control());
  Watchdog watchdog({.timeout = config.collective_timeout});
  if (config.rank > 0) return ServePeer(**transformer, broadcast, watchdog, signals);
  return ServeRoot(config, *model, *edge, **transformer, broadcast, watchdog, metrics, signals);
}

}  // namespace marcoro
