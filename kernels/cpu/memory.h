// Memory for weights, KV cache and activations.
#pragma once

#include <cstddef>
#include <string_view>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace marcoro::cpu {

// Zeroed memory, aligned to 64 bytes at least, in huge pages where the kernel gives them. It is
// really there when this returns, so that a later allocation sees how much is left.
// RESOURCE_EXHAUSTED if the machine has less to spare, naming both amounts. A Buffer of 0 bytes has
// null data.
absl::StatusOr<Buffer> AllocateMemory(size_t bytes);

// Bytes this process could still allocate without swapping: the smaller of what the machine
// (MemAvailable) and the memory limit of its control group leave. SIZE_MAX where neither is known.
size_t AvailableMemory();

// The value of "MemAvailable" in a text like /proc/meminfo, in bytes; SIZE_MAX if it is not there.
size_t ParseMemAvailable(std::string_view meminfo);

}  // namespace marcoro::cpu
