#include "coordinator/routing/replica.h"

#include <algorithm>
#include <utility>

#include "absl/strings/string_view.h"

namespace marcoro {
namespace {

// FNV-1a: equal in every process, unlike absl::Hash.
uint64_t StableHash(absl::string_view text) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

}  // namespace

Sequence::Sequence(worker::v1::Submit submit, uint64_t sequence_affinity,
                   std::shared_ptr<SequenceSink> sequence_sink)
    : affinity(sequence_affinity), sink(std::move(sequence_sink)), log(std::move(submit)) {}

Replica::Replica(std::string replica_address, uint64_t replica_ordinal)
    : address(std::move(replica_address)), key(StableHash(address)), ordinal(replica_ordinal) {}

ReplicaLoad Replica::Load() const {
  return {.key = key, .ordinal = ordinal, .sequences = others + sequences.size()};
}

void Replica::TakeStatus(worker::v1::WorkerStatus new_status) {
  status = std::move(new_status);
  const uint64_t reported = uint64_t{status.running()} + status.waiting();
  others = reported - std::min<uint64_t>(reported, sequences.size());
}

}  // namespace marcoro
