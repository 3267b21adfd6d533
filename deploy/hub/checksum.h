// The checksums by which a hub names contents.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace marcoro {

// Of a hash that a hub gives as a file's ETag: 64 hexadecimal digits are the SHA-256 of the
// contents (files in large file storage), 40 the SHA-1 of git's blob object (all others).
class Checksum {
 public:
  // INVALID_ARGUMENT if the hash has neither form. `size` is the length of the contents.
  static absl::StatusOr<Checksum> Create(std::string hash, uint64_t size);

  void Add(std::string_view bytes);
  // Begins anew, with nothing added.
  void Restart();
  // Whether what was added has the hash. Ends the sum: Restart before the next Add.
  bool Matches();

  const std::string& hash() const { return hash_; }

 private:
  struct Context;
  struct Free {
    void operator()(Context* context) const;
  };

  Checksum(std::string hash, uint64_t size);

  std::string hash_;
  uint64_t size_;
  std::unique_ptr<Context, Free> context_;
};

// An ETag header without quotes and weakness mark.
std::string StrippedEtag(std::string_view etag);

}  // namespace marcoro
