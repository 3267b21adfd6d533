// The sampling fields of a request: ranges, and what holds where one is unset.
#pragma once

#include "coordinator/api/errors.h"
#include "coordinator/api/generation_defaults.h"
#include "marcoro/v1/inference.pb.h"
#include "marcoro/worker/v1/worker.pb.h"

namespace marcoro {

// Adds what is out of range to `*violations`, and puts the rest into `*sampling`: the request's
// value, otherwise the checkpoint's default, otherwise the API's. The seed and bad_words are left
// to the caller.
void ReadSamplingFields(const v1::GenerateRequest& request, const GenerationDefaults& defaults,
                        uint32_t vocabulary_size, worker::v1::Sampling* sampling,
                        FieldViolations* violations);

// Adds a violation for each id that is not below `vocabulary_size`, as "field[i]", and one if there
// are more than `max_count`.
void CheckTokenIds(absl::string_view field, const google::protobuf::RepeatedField<uint32_t>& ids,
                   int max_count, uint32_t vocabulary_size, FieldViolations* violations);

}  // namespace marcoro
