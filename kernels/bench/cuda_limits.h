// What a GPU can do at best, and a pause: kernels of the bench alone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/launch.h"

namespace marcoro::cuda {

// Keeps the stream busy for so long, in which the host can queue what is to be timed.
void Pause(Stream stream, uint64_t nanoseconds);

// Reads `bytes` bytes, a multiple of 16, once. `sink` is 4 bytes that keep the compiler from
// dropping the reads.
void ReadOnce(Stream stream, int multiprocessors, const void* data, size_t bytes, uint32_t* sink);

// Independent BF16 products on all multiprocessors; returns the operations that one launch does.
// `warpgroups`: with the instructions of sm_90a, otherwise with those that all have.
double MultiplyLoop(Stream stream, int multiprocessors, bool warpgroups, int iterations,
                    float* sink);

}  // namespace marcoro::cuda
