// The threads that compute. Workers spin for a short while between parallel regions, so that a
// decode step's hundreds of regions cost microseconds, then sleep, so that an idle server costs
// nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"

namespace marcoro::cpu {

class ThreadPool {
 public:
  // `threads` includes the caller of Run; from 1 to 1024.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const;

  // Runs body(i) for every i in [0, count), each once, handed out dynamically in increasing order;
  // returns when all are done. Not reentrant: one caller at a time, and not from within a body.
  void Run(int64_t count, absl::FunctionRef<void(int64_t)> body);

  // Memory of the pool for intermediate results of the op that runs: at least `bytes`, aligned to
  // 64, with unspecified contents, valid until the next call. For the caller of Run, outside of
  // bodies.
  void* Scratch(size_t bytes);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace marcoro::cpu
