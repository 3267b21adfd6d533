// Between the worker protocol and the engine's own types.
#pragma once

#include "absl/status/statusor.h"
#include "marcoro/worker/v1/worker.pb.h"
#include "worker/engine/request.h"

namespace marcoro {

// Checks everything that the engine relies on: at least one prompt token, ids below
// vocabulary_size, finite parameters in their ranges. INVALID_ARGUMENT otherwise. The sink is the
// caller's to set.
absl::StatusOr<EngineRequest> ToEngineRequest(const worker::v1::Submit& submit,
                                              int32_t vocabulary_size);

void ToProto(const SequenceOutput& output, worker::v1::SequenceUpdate* update);

}  // namespace marcoro
