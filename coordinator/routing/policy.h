// How a replica is chosen for a sequence. A policy is one file and one line in the table of
// policy.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace marcoro {

// One replica that could take the sequence.
struct ReplicaLoad {
  // Hash of the replica's address: the same in every coordinator, and over restarts.
  uint64_t key = 0;
  // Grows in the order in which replicas were first seen; unique.
  uint64_t ordinal = 0;
  // Sequences running or waiting there, those of other coordinators included.
  uint64_t sequences = 0;
};

// Not thread-safe: the router calls it under its lock.
class Policy {
 public:
  virtual ~Policy() = default;
  // The index of the chosen candidate. candidates: at least one, by ascending ordinal. affinity:
  // equal for requests that share a prefix, 0 for none.
  virtual size_t Pick(absl::Span<const ReplicaLoad> candidates, uint64_t affinity) = 0;
};

// INVALID_ARGUMENT, naming the known policies, for any other name.
absl::StatusOr<std::unique_ptr<Policy>> MakePolicy(absl::string_view name);

// In alphabetical order.
std::vector<absl::string_view> PolicyNames();

// The least loaded candidate, the first among equals.
size_t LeastLoaded(absl::Span<const ReplicaLoad> candidates);

std::unique_ptr<Policy> MakeLeastLoadedPolicy();
std::unique_ptr<Policy> MakePrefixAffinityPolicy();
std::unique_ptr<Policy> MakeRoundRobinPolicy();

}  // namespace marcoro
