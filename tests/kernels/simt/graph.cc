// kernels/cuda/graph.h over the emulator: a graph is a list of what was queued.
#include "kernels/cuda/graph.h"

#include <memory>
#include <string>

#include "tests/kernels/simt/capture.h"

namespace marcoro {
namespace simt {
namespace {

absl::Status Refuse(Recording* recording, const char* call) {
  if (recording == nullptr) return absl::OkStatus();
  if (recording->misuse.empty()) recording->misuse = call;
  return absl::InternalError(std::string("GPU: not in a capture: ") + call);
}

}  // namespace

thread_local Recording* capture_of_thread = nullptr;

absl::Status CheckNotCaptured(Stream stream, const char* call) {
  return Refuse(stream.state == nullptr ? nullptr : stream.state->recording, call);
}
absl::Status CheckNotCapturing(const char* call) { return Refuse(capture_of_thread, call); }

}  // namespace simt

namespace cuda {

Graph::~Graph() { delete handle_; }

void Graph::Launch(Stream stream) const {
  for (const auto& work : handle_->work) simt::Queue(stream, work);
}

absl::StatusOr<Graph> CaptureGraph(Stream stream, const std::function<absl::Status()>& body) {
  if (stream.state == nullptr) return absl::InternalError("GPU: this stream cannot be captured");
  absl::Status status = simt::CheckNotCapturing("a capture");
  status.Update(simt::CheckNotCaptured(stream, "a capture"));
  if (!status.ok()) return status;
  auto recording = std::make_unique<simt::Recording>();
  stream.state->recording = simt::capture_of_thread = recording.get();
  status = body();
  stream.state->recording = simt::capture_of_thread = nullptr;
  if (!status.ok()) return status;
  if (!recording->misuse.empty()) {
    return absl::InternalError("GPU: a capture was spoiled by " + recording->misuse);
  }
  return Graph(recording.release());
}

}  // namespace cuda
}  // namespace marcoro
