// The numerics fingerprint: workers of equal fingerprint give equal bits.
#pragma once

#include <string>

namespace marcoro {

// What else than the weights changes arithmetic.
struct NumericsOptions {
  std::string weights_format;  // "fp8", "bf16" or "f32"
  std::string kernel_family;   // Backend::name()
  std::string activations;     // "bf16", "fp8" or "f32"
  std::string kv_format;       // "bf16" or "fp8"
};

// 16 hexadecimal digits of SHA-256 over the numerics contract's version, the identity of the
// weights (WeightsIdentity) and the options. Neither the tensor-parallel degree nor anything else
// that leaves the bits alone enters.
std::string NumericsFingerprint(const std::string& weights_identity,
                                const NumericsOptions& options);

}  // namespace marcoro
