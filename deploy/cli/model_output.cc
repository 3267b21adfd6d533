#include "deploy/cli/model_output.h"

#include <sched.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "deploy/cli/byte_size.h"
#include "deploy/cli/command_line.h"
#include "deploy/cli/interrupt.h"
#include "kernels/backend.h"
#include "worker/weights/identity.h"
#include "worker/weights/progress.h"

namespace marcoro {
namespace {

constexpr int kExitInterrupted = 130;  // 128 + SIGINT

int Threads(int32_t asked) {
  if (asked > 0) return asked;
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

// A file that becomes larger than the process may write is an error like a full disk, not the end.
void IgnoreFileSizeSignal() { std::signal(SIGXFSZ, SIG_IGN); }

absl::Status WriteWeights(TensorSource& source, const ExportPlan& plan, int threads,
                          const std::atomic<bool>& interrupted, CheckpointWriter& writer) {
  absl::StatusOr<std::unique_ptr<Backend>> backend = CreateBackend({.threads = threads});
  if (!backend.ok()) return backend.status();
  ProgressReporter reporter(ProgressOptions::ForStderr("writing"));
  ExportOptions options;
  options.parallel = [&backend](int64_t n, const std::function<void(int64_t)>& work) {
    (*backend)->ParallelFor(n, work);
  };
  options.progress = [&reporter](uint64_t done, uint64_t total) { reporter.Update(done, total); };
  options.cancelled = &interrupted;
  return ExportTensors(source, plan, options, writer);
}

uint64_t BytesOf(const std::vector<ModelFile>& files) {
  uint64_t bytes = 0;
  for (const ModelFile& file : files) bytes += file.contents.size();
  return bytes;
}

void TellResume(const CheckpointWriter& writer) {
  size_t finished = 0;
  for (size_t i = 0; i < writer.shard_count(); ++i) finished += writer.IsFinished(i) ? 1 : 0;
  if (finished == 0) return;
  spdlog::info("{} of {} files are there from a run that was killed", finished,
               writer.shard_count());
}

void TellResult(const CheckpointWriter& writer, const std::string& directory) {
  uint64_t bytes = 0;
  for (size_t i = 0; i < writer.shard_count(); ++i) {
    for (const OutputTensor& tensor : writer.shard(i)) bytes += tensor.bytes();
  }
  std::printf("%s: %zu file%s of weights, %.6g MB\n", directory.c_str(), writer.shard_count(),
              writer.shard_count() == 1 ? "" : "s", static_cast<double>(bytes) / 1e6);
}

}  // namespace

void AddModelOutputFlags(FlagTable* table, ModelOutputFlags* flags) {
  table->Add("shard-size", &flags->shard_size,
             {.value = "SIZE",
              .help = "Largest safetensors file; a tensor that is larger has a file of its own."});
  table->Add("threads", &flags->threads,
             {.value = "N",
              .help = "Threads that compute; 0: the processors this process may use.",
              .maximum = 1024});
}

absl::Status WriteModel(ModelInput& input, ExportFormat format, const std::vector<ModelFile>& files,
                        const std::string& directory, const ModelOutputFlags& flags,
                        absl::string_view command) {
  IgnoreFileSizeSignal();
  absl::StatusOr<uint64_t> shard_bytes = ParseByteSize(flags.shard_size);
  if (!shard_bytes.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--shard-size: ", shard_bytes.status().message()));
  }
  absl::StatusOr<ExportPlan> plan = PlanExport(*input.source, input.config, format, *shard_bytes);
  if (!plan.ok()) return plan.status();
  absl::StatusOr<std::string> identity = WeightsIdentity(*input.source, input.config);
  if (!identity.ok()) return identity.status();
  const std::atomic<bool>& interrupted = WatchForInterrupt();
  absl::StatusOr<std::unique_ptr<CheckpointWriter>> writer =
      CheckpointWriter::Begin({.directory = directory,
                               .identity = absl::StrCat(command, " ", *identity),
                               .other_bytes = BytesOf(files)},
                              plan->shards);
  if (!writer.ok()) return writer.status();
  TellResume(**writer);
  absl::Status status =
      WriteWeights(*input.source, *plan, Threads(flags.threads), interrupted, **writer);
  for (const ModelFile& file : files) {
    if (status.ok()) status = (*writer)->AddFile(file.name, file.contents);
  }
  if (status.ok()) status = (*writer)->Commit();
  if (status.ok()) TellResult(**writer, directory);
  return status;
}

int ModelFailure(absl::string_view command, const absl::Status& status) {
  Failure(command, status);
  return absl::IsCancelled(status) ? kExitInterrupted : kExitFailure;
}

void LogToStderr(absl::string_view command) {
  spdlog::set_default_logger(spdlog::stderr_color_mt(std::string(command)));
  spdlog::set_pattern(absl::StrCat("marcoro ", command, ": %v"));
}

}  // namespace marcoro
