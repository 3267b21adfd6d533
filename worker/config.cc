#include "worker/config.h"

#include "absl/strings/str_cat.h"

namespace marcoro {

DType WorkerConfig::linear_dtype() const {
  if (weights == "fp8") return DType::kF8E4M3;
  return weights == "bf16" ? DType::kBF16 : DType::kF32;
}

DType WorkerConfig::activation_dtype() const {
  if (activations == "fp8") return DType::kF8E4M3;
  return activations == "f32" ? DType::kF32 : DType::kBF16;
}

KvFormat WorkerConfig::kv_format() const {
  return kv == "fp8" ? KvFormat::kFp8 : KvFormat::kActivation;
}

namespace {

void AddModelFlags(WorkerConfig* config, FlagTable* table) {
  table->Add("model", &config->model,
             {.value = "MODEL",
              .help = "Folder of a checkpoint, as a hub serves it, or a merge recipe (.yml).",
              .required = true});
  table->Add(
      "load-format", &config->load_format,
      {.value = "safetensors|random",
       .help =
           "Where weights come from; random makes weights of config.json's shapes, for measuring.",
       .choices = {"safetensors", "random"}});
  table->Add("random-seed", &config->random_seed,
             {.value = "N", .help = "Seed of random weights."});
  table->Add("weights", &config->weights,
             {.value = "fp8|bf16|f32",
              .help = "How linear weights are held: E4M3 with a scale per row, BF16, or F32 "
                      "(reference backend only).",
              .choices = {"fp8", "bf16", "f32"}});
  table->Add("backend", &config->backend,
             {.value = "auto|avx512|avx2|reference|cuda",
              .help = "Kernel family; auto takes the best that the processor runs, cuda an NVIDIA "
                      "GPU (in programs built with it).",
              .choices = {"auto", "avx512", "avx2", "reference", "cuda"}});
  table->Add(
      "device", &config->device,
      {.value = "N",
       .help = "Which of the GPUs that the process sees, with --backend=cuda; -1: ranks take "
               "them in turn.",
       .minimum = -1,
       .maximum = 255});
  table->Add(
      "cuda-graphs", &config->cuda_graphs,
      {.help = "Capture decode steps on a GPU and repeat them as CUDA graphs. Without it, no "
               "token changes and small steps are slower: for a driver that misbehaves."});
  table->Add("activations", &config->activations,
             {.value = "bf16|fp8|f32",
              .help = "Activation type. fp8: as bf16, but products of FP8 weights (not those held "
                      "in BF16) take inputs in E4M3 with a scale per token; less exact. f32 is the "
                      "reference backend's.",
              .choices = {"bf16", "fp8", "f32"}});
  table->Add(
      "threads", &config->threads,
      {.value = "N",
       .help = "Threads that compute; 0: the processors this process may use, shared by the ranks.",
       .maximum = 1024});
}

void AddGroupFlags(WorkerConfig* config, FlagTable* table) {
  table->Add(
      "rank", &config->rank,
      {.value = "R", .help = "This process's place in its tensor-parallel group.", .maximum = 7});
  table->Add("world-size", &config->world_size,
             {.value = "N",
              .help = "Ranks of the group: a power of two that the model allows.",
              .minimum = 1,
              .maximum = 8});
  table->Add("listen", &config->listen,
             {.value = "HOST:PORT",
              .help = "Rank 0: where coordinators and peers reach it. It is not authenticated."});
  table->Add("root", &config->root, {.value = "HOST:PORT", .help = "Peers: where rank 0 listens."});
  table->Add("collective", &config->collective,
             {.value = "auto|shared-memory|gloo|nccl|peer-memory",
              .help = "What carries partial sums; auto takes shared memory where all ranks share a "
                      "host, and between GPUs NCCL, or peer memory where ranks share one. Rank 0's "
                      "choice counts.",
              .choices = {"auto", "shared-memory", "gloo", "nccl", "peer-memory"}});
  table->Add(
      "interface", &config->interface,
      {.value = "NAME",
       .help =
           "Network interface of the collectives; empty: the one that leads to the other ranks."});
  table->Add("join-timeout", &config->join_timeout,
             {.value = "DURATION",
              .help = "How long ranks wait for each other at the start.",
              .minimum = 0.1,
              .maximum = 86400});
  table->Add("collective-timeout", &config->collective_timeout,
             {.value = "DURATION",
              .help = "Longest time of one step; a rank that takes longer ends its group.",
              .minimum = 0.1,
              .maximum = 86400});
  table->Add("heartbeat-interval", &config->heartbeat_interval,
             {.value = "DURATION",
              .help = "How often an idle rank 0 tells its peers that it lives.",
              .minimum = 0.01,
              .maximum = 60});
}

void AddSchedulerFlags(WorkerConfig* config, FlagTable* table) {
  table->Add(
      "context-length", &config->context_length,
      {.value = "N",
       .help = "Most tokens of prompt and answer together; cut to what the checkpoint allows.",
       .minimum = 2,
       .maximum = 1 << 20});
  table->Add(
      "max-sequences", &config->max_sequences,
      {.value = "N", .help = "Most sequences that run at once.", .minimum = 1, .maximum = 4096});
  table->Add(
      "max-step-tokens", &config->max_step_tokens,
      {.value = "N",
       .help = "Token budget of a step: more is faster prefill and longer pauses between tokens.",
       .minimum = 1,
       .maximum = 65536});
  table->Add("max-logit-rows", &config->max_logit_rows,
             {.value = "N",
              .help = "Most rows of logits in a step; bounds the memory of scoring.",
              .minimum = 1,
              .maximum = 4096});
  table->Add("max-waiting", &config->max_waiting,
             {.value = "N",
              .help = "Most sequences that wait; one more is refused.",
              .minimum = 1,
              .maximum = 1 << 20});
  table->Add("kv", &config->kv,
             {.value = "bf16|fp8",
              .help = "How the KV cache holds keys and values: BF16 (F32 with --activations=f32), "
                      "or E4M3 with a scale per position and head, in about half the memory.",
              .choices = {"bf16", "fp8"}});
  table->Add(
      "kv-tokens", &config->kv_tokens,
      {.value = "N",
       .help = "Size of the KV cache in tokens; 0: from free memory, at most 16 contexts, on "
               "a GPU one for each of --max-sequences."});
  table->Add("memory-fraction", &config->memory_fraction,
             {.value = "X",
              .help = "Share of the memory left after loading that the KV cache may take.",
              .minimum = 0.01,
              .maximum = 0.95});
  table->Add("prefix-cache", &config->prefix_cache,
             {.help = "Reuse the KV blocks of equal prefixes."});
}

void AddProcessFlags(WorkerConfig* config, FlagTable* table) {
  table->Add("metrics", &config->metrics,
             {.value = "HOST:PORT", .help = "Address of the Prometheus endpoint; empty: none."});
  table->Add("drain-timeout", &config->drain_timeout,
             {.value = "DURATION",
              .help = "How long running requests may go on after SIGTERM.",
              .maximum = 86400});
  table->Add(
      "log-level", &config->log_level,
      {.value = "LEVEL",
       .help = "Least severe log line that is written: trace, debug, info, warn, error or off.",
       .choices = {"trace", "debug", "info", "warn", "error", "off"}});
}

}  // namespace

FlagTable WorkerFlags(WorkerConfig* config) {
  FlagTable table(
      "usage: marcoro-worker --model=DIR [--rank=R --world-size=N --root=HOST:PORT] [flags]");
  AddModelFlags(config, &table);
  AddGroupFlags(config, &table);
  AddSchedulerFlags(config, &table);
  AddProcessFlags(config, &table);
  return table;
}

absl::Status CheckWorkerConfig(const WorkerConfig& config) {
  if (config.rank >= config.world_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("--rank=", config.rank, " must be below --world-size=", config.world_size));
  }
  if (config.rank > 0 && config.root.empty()) {
    return absl::InvalidArgumentError("--root=HOST:PORT is missing: peers need rank 0's address");
  }
  const bool between_gpus = config.collective == "nccl" || config.collective == "peer-memory";
  if (between_gpus && config.backend != "cuda") {
    return absl::InvalidArgumentError(
        absl::StrCat("--collective=", config.collective, " needs --backend=cuda"));
  }
  const bool reference_only = config.activations == "f32" || config.weights == "f32";
  if (reference_only && config.backend != "reference") {
    return absl::InvalidArgumentError(
        "--activations=f32 and --weights=f32 need --backend=reference");
  }
  if (config.activations == "fp8" && config.weights != "fp8") {
    return absl::InvalidArgumentError("--activations=fp8 needs --weights=fp8");
  }
  return absl::OkStatus();
}

}  // namespace marcoro
