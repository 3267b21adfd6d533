#include "worker/fingerprint.h"

#include "worker/weights/sha256.h"

namespace marcoro {
namespace {

// To be raised by any change that alters bits: an order of summation, a rounding, a kernel's
// arithmetic.
constexpr uint64_t kNumericsVersion = 1;
constexpr size_t kDigits = 16;

}  // namespace

std::string NumericsFingerprint(const std::string& weights_identity,
                                const NumericsOptions& options) {
  Sha256 hash;
  hash.Number(kNumericsVersion);
  hash.Text(weights_identity);
  hash.Text(options.weights_format);
  hash.Text(options.kernel_family);
  hash.Text(options.activations);
  hash.Text(options.kv_format);
  return hash.HexDigest().substr(0, kDigits);
}

}  // namespace marcoro
