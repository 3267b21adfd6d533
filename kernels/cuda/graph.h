// Work that is recorded once and then queued again and again in one call: a CUDA graph. graph.cc
// records on a GPU, tests/kernels/simt/graph.cc in the emulator.
#pragma once

#include <functional>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/launch.h"

namespace marcoro::cuda {

#ifdef MARCORO_SIMT
using GraphHandle = simt::Recording*;
#else
using GraphHandle = cudaGraphExec_t;
#endif

// Movable. Must not be destroyed before what was queued of it has happened.
class Graph {
 public:
  explicit Graph(GraphHandle handle) : handle_(handle) {}
  Graph(Graph&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Graph& operator=(Graph&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Graph();

  // Queues all of it, in its order: launches with the arguments, copies with the addresses that
  // they were recorded with.
  void Launch(Stream stream) const;

 private:
  GraphHandle handle_;
};

// Records what body queues on the stream: nothing of it runs. Body may not wait for the stream, nor
// allocate or free memory; other threads may, beside streams of their own. The failure is body's,
// or INTERNAL for what cannot be recorded; the stream is as before then.
absl::StatusOr<Graph> CaptureGraph(Stream stream, const std::function<absl::Status()>& body);

}  // namespace marcoro::cuda
