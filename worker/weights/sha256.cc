#include "worker/weights/sha256.h"

#include <openssl/evp.h>

#include "absl/strings/escaping.h"
#include "absl/strings/string_view.h"
#include "kernels/check.h"

namespace marcoro {

Sha256::Sha256() : context_(EVP_MD_CTX_new()) {
  MARCORO_CHECK(context_ != nullptr);
  MARCORO_CHECK(EVP_DigestInit_ex(context_, EVP_sha256(), nullptr) == 1);
}

Sha256::~Sha256() { EVP_MD_CTX_free(context_); }

void Sha256::Bytes(const void* data, size_t bytes) {
  MARCORO_CHECK(EVP_DigestUpdate(context_, data, bytes) == 1);
}

void Sha256::Text(std::string_view text) {
  Number(text.size());
  Bytes(text.data(), text.size());
}

void Sha256::Number(uint64_t value) {
  unsigned char bytes[8];
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<unsigned char>(value >> (8 * i));
  Bytes(bytes, sizeof(bytes));
}

std::string Sha256::HexDigest() {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  MARCORO_CHECK(EVP_DigestFinal_ex(context_, digest, &length) == 1);
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<char*>(digest), length));
}

}  // namespace marcoro
