// SHA-256 of a sequence of fields.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

typedef struct evp_md_ctx_st EVP_MD_CTX;

namespace marcoro {

class Sha256 {
 public:
  Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  ~Sha256();

  void Bytes(const void* data, size_t bytes);
  // A field: its length (little-endian 64 bits), then its bytes, so that no two sequences of fields
  // look the same.
  void Text(std::string_view text);
  void Number(uint64_t value);  // little-endian

  // 64 lower-case hexadecimal digits. Ends the hash.
  std::string HexDigest();

 private:
  EVP_MD_CTX* context_;
};

}  // namespace marcoro
