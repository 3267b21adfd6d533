#include "kernels/cuda/step_runner.h"

#include <algorithm>
#include <array>
#include <bit>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/check.h"
#include "kernels/cuda/graph.h"
#include "kernels/cuda/runtime.h"
#include "kernels/op_checks.h"

namespace marcoro::cuda {
namespace {

// What ops check of a step, for one whose ops are not asked for.
void CheckFits(const StepInput& step, const StepTies& ties) {
  for (const int32_t id : step.ids) MARCORO_CHECK(id >= 0 && id < ties.vocabulary);
  for (const SequenceSpan& sequence : step.sequences) {
    MARCORO_CHECK(int64_t{sequence.position} + sequence.tokens <= ties.positions);
    if (ties.kv_blocks >= 0) {
      CheckVisibleBlocks(sequence, ties.window, KvCacheLayer{.blocks = ties.kv_blocks});
    }
  }
}

class DeviceStepRunner final : public StepRunner {
 public:
  DeviceStepRunner(StepHost& host, Stream stream, const StepRunnerOptions& options, Body body)
      : host_(host),
        stream_(stream),
        options_(options),
        most_rows_(std::min<int64_t>(options.limits.tokens, kMostGraphRows)),
        body_(std::move(body)) {}
  ~DeviceStepRunner() override {
    Synchronize(stream_).IgnoreError();  // a graph may be under way
  }

  absl::Status Run(const StepInput& step) override {
    if (!options_.repeatable || !IsDecodeStep(step)) {
      host_.BeginStepWithRoom(step, {});
      if (absl::Status status = host_.failure(); !status.ok()) return status;
      return body_(step);
    }
    const GraphRows rows = PadGraphRows(static_cast<int64_t>(step.ids.size()), most_rows_);
    const StepInput padded = Pad(step, rows.rows);
    host_.BeginStepWithRoom(padded,
                            {.sequences = rows.rows, .context = options_.limits.context_length});
    if (absl::Status status = host_.failure(); !status.ok()) return status;
    if (!options_.graphs) return body_(padded);
    return Repeat(padded, kinds_[static_cast<size_t>(rows.graph)]);
  }

 private:
  // Steps of one number of rows.
  struct Kind {
    bool has_run = false;
    std::optional<Graph> graph;
    StepTies ties;  // of the graph
  };

  bool IsDecodeStep(const StepInput& step) const;
  StepInput Pad(const StepInput& step, int rows);
  absl::Status Repeat(const StepInput& step, Kind& kind);
  absl::Status Capture(const StepInput& step, Kind& kind);

  StepHost& host_;
  const Stream stream_;
  const StepRunnerOptions options_;
  const int64_t most_rows_;
  const Body body_;
  std::array<Kind, kGraphs> kinds_;
  // Of the step that runs, with its padding.
  std::vector<int32_t> ids_;
  std::vector<int32_t> logit_rows_;
};

bool DeviceStepRunner::IsDecodeStep(const StepInput& step) const {
  const auto rows = static_cast<int64_t>(step.ids.size());
  return rows > 0 && rows <= most_rows_ && step.sequences.size() == step.ids.size() &&
         step.logit_rows.size() <= step.ids.size() &&
         std::all_of(step.sequences.begin(), step.sequences.end(),
                     [](const SequenceSpan& sequence) { return sequence.tokens == 1; });
}

// Nearly every row of a decode step wants logits: as many are computed as there are rows, so that
// their number does not make for further graphs.
StepInput DeviceStepRunner::Pad(const StepInput& step, int rows) {
  ids_.assign(step.ids.begin(), step.ids.end());
  ids_.resize(static_cast<size_t>(rows), 0);
  logit_rows_.assign(step.logit_rows.begin(), step.logit_rows.end());
  const auto most = static_cast<size_t>(std::min<int64_t>(rows, options_.limits.logit_rows));
  MARCORO_CHECK(logit_rows_.size() <= most);
  logit_rows_.resize(most, 0);
  StepInput padded = step;
  padded.ids = ids_;
  padded.logit_rows = logit_rows_;
  return padded;
}

absl::Status DeviceStepRunner::Repeat(const StepInput& step, Kind& kind) {
  // The first runs op by op: what the runtime and NCCL do at a first use, load code for example, a
  // capture may not do.
  if (!std::exchange(kind.has_run, true)) return body_(step);
  const StepTies now = host_.ties();
  const bool has_moved = now.scratch != kind.ties.scratch || now.upload != kind.ties.upload;
  if (!kind.graph.has_value() || has_moved) {
    if (absl::Status status = Capture(step, kind); !status.ok()) return status;
  } else {
    CheckFits(step, kind.ties);
  }
  kind.graph->Launch(stream_);
  return absl::OkStatus();
}

absl::Status DeviceStepRunner::Capture(const StepInput& step, Kind& kind) {
  if (kind.graph.has_value()) {
    if (absl::Status status = Synchronize(stream_); !status.ok()) return status;
    kind.graph.reset();
  }
  auto graph = CaptureGraph(stream_, [&] {
    absl::Status status = body_(step);
    status.Update(host_.failure());
    return status;
  });
  if (!graph.ok()) return graph.status();
  kind.graph = *std::move(graph);
  kind.ties = host_.ties();
  return absl::OkStatus();
}

}  // namespace

GraphRows PadGraphRows(int64_t rows, int64_t most_rows) {
  const auto power = std::bit_ceil(static_cast<uint64_t>(rows));
  return {.rows = static_cast<int>(std::min<int64_t>(static_cast<int64_t>(power), most_rows)),
          .graph = std::countr_zero(power)};
}

std::unique_ptr<StepRunner> MakeDeviceStepRunner(StepHost& host, Stream stream,
                                                 const StepRunnerOptions& options,
                                                 StepRunner::Body body) {
  return std::make_unique<DeviceStepRunner>(host, stream, options, std::move(body));
}

}  // namespace marcoro::cuda
