// What a capture of the emulator does not allow, as a GPU's runtime does not.
#pragma once

#include "absl/status/status.h"
#include "tests/kernels/simt/simt.h"

namespace marcoro::simt {

// The recording of the capture that this thread has begun; null: none.
extern thread_local Recording* capture_of_thread;

// A call that waits for a stream: INTERNAL while that is captured, which is spoiled by it.
absl::Status CheckNotCaptured(Stream stream, const char* call);
// A call that no capture of the same thread allows, on whatever stream.
absl::Status CheckNotCapturing(const char* call);

}  // namespace marcoro::simt
