// Runs steps; those of decoding, where every sequence has one token, as captured graphs.
//
// Some ten launches for each layer take longer than a small step's kernels: so a decode step is
// padded up to one of few numbers of rows, its launches are captured once for each, and later steps
// are one upload and one launch of the graph. All that differs between steps is in the upload
// (step_upload.h), whose addresses are the same for all steps of a number of rows.
//
// Context is no part of a graph's shape. Attention is launched for the longest context, and its
// blocks find out what there is to do: pieces of work are dealt to as many blocks as at the exact
// length wherever these fill the GPU, and otherwise what is more of them ends at once, within the
// same wave.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "kernels/backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/step_upload.h"

namespace marcoro::cuda {

// Decode steps of more rows run op by op: there the kernels take longer than their launches.
inline constexpr int kMostGraphRows = 256;
// Numbers of rows, and graphs: the powers of two up to there.
inline constexpr int kGraphs = 9;

// Rows that a decode step of `rows` is padded up to, and which of the graphs that is. At most
// `most_rows`, which is not below `rows`.
struct GraphRows {
  int rows = 0;
  int graph = 0;
};
GraphRows PadGraphRows(int64_t rows, int64_t most_rows);

// What the ops of a step are given beside it: a step that repeats them must fit.
struct StepTies {
  // Memory that they work in.
  const void* scratch = nullptr;
  const void* upload = nullptr;
  // Rows of the tables that ids and positions are looked up in.
  int64_t vocabulary = INT64_MAX;
  int64_t positions = INT64_MAX;
  // The window, and the blocks of a layer's cache; -1: no op asked for blocks.
  int32_t window = -1;
  int32_t kv_blocks = -1;
};

// What a runner needs of its backend.
class StepHost {
 public:
  // As Backend::BeginStep.
  virtual void BeginStepWithRoom(const StepInput& step, const StepRoom& room) = 0;
  // Of the step that began last, as far as its ops have been asked for.
  virtual StepTies ties() const = 0;
  // Of an op, or of the device, as far as it is known without waiting.
  virtual absl::Status failure() const = 0;

 protected:
  ~StepHost() = default;
};

struct StepRunnerOptions {
  StepLimits limits;
  bool repeatable = false;  // as in Backend::MakeStepRunner
  bool graphs = true;       // otherwise repeatable steps are padded, and run op by op
};

// The host outlives the runner. Ops are queued on the stream.
std::unique_ptr<StepRunner> MakeDeviceStepRunner(StepHost& host, Stream stream,
                                                 const StepRunnerOptions& options,
                                                 StepRunner::Body body);

}  // namespace marcoro::cuda
