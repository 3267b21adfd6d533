#include "kernels/cuda/graph.h"

#include <cuda_runtime.h>

#include "absl/strings/str_cat.h"

namespace marcoro::cuda {
namespace {

absl::Status ErrorStatus(const char* what, cudaError_t error) {
  return absl::InternalError(absl::StrCat("GPU: ", what, " a CUDA graph: ", cudaGetErrorName(error),
                                          " (", cudaGetErrorString(error), ")"));
}

// Ends the capture in any case. An earlier failure is the capture's.
absl::StatusOr<cudaGraph_t> EndCapture(Stream stream, const absl::Status& body) {
  // A launch that was refused is missing from the graph, and does not show in its end.
  const cudaError_t refused = cudaGetLastError();
  cudaGraph_t recorded = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream, &recorded);
  (void)cudaGetLastError();
  absl::Status status = body;
  if (refused != cudaSuccess) status.Update(ErrorStatus("recording", refused));
  if (ended != cudaSuccess) status.Update(ErrorStatus("recording", ended));
  if (status.ok()) return recorded;
  if (recorded != nullptr) cudaGraphDestroy(recorded);
  return status;
}

}  // namespace

Graph::~Graph() {
  if (handle_ != nullptr) cudaGraphExecDestroy(handle_);
}

// Failures stay with the runtime until Synchronize asks for them.
void Graph::Launch(Stream stream) const { cudaGraphLaunch(handle_, stream); }

absl::StatusOr<Graph> CaptureGraph(Stream stream, const std::function<absl::Status()>& body) {
  if (const cudaError_t before = cudaGetLastError(); before != cudaSuccess) {
    return ErrorStatus("before", before);
  }
  // Of this thread alone: what others ask of the device meanwhile is no part of it.
  const cudaError_t begun = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  if (begun != cudaSuccess) return ErrorStatus("beginning", begun);
  const absl::StatusOr<cudaGraph_t> recorded = EndCapture(stream, body());
  if (!recorded.ok()) return recorded.status();
  cudaGraphExec_t executable = nullptr;
  const cudaError_t made = cudaGraphInstantiate(&executable, *recorded, 0);
  cudaGraphDestroy(*recorded);
  if (made != cudaSuccess) return ErrorStatus("making", made);
  return Graph(executable);
}

}  // namespace marcoro::cuda
