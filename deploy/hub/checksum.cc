#include "deploy/hub/checksum.h"

#include <openssl/evp.h>

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "kernels/check.h"

namespace marcoro {
namespace {

constexpr size_t kSha256Digits = 64;
constexpr size_t kSha1Digits = 40;

bool IsHexadecimal(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

}  // namespace

struct Checksum::Context {
  EVP_MD_CTX* const digest = EVP_MD_CTX_new();
  ~Context() { EVP_MD_CTX_free(digest); }
};

void Checksum::Free::operator()(Context* context) const { delete context; }

absl::StatusOr<Checksum> Checksum::Create(std::string hash, uint64_t size) {
  if ((hash.size() != kSha256Digits && hash.size() != kSha1Digits) || !IsHexadecimal(hash)) {
    return absl::InvalidArgumentError(
        "gives no checksum: neither a SHA-256 nor git's hash of the contents");
  }
  return Checksum(std::move(hash), size);
}

Checksum::Checksum(std::string hash, uint64_t size)
    : hash_(std::move(hash)), size_(size), context_(new Context) {
  MARCORO_CHECK(context_->digest != nullptr);
  Restart();
}

void Checksum::Restart() {
  const bool sha256 = hash_.size() == kSha256Digits;
  const EVP_MD* const kind = sha256 ? EVP_sha256() : EVP_sha1();
  MARCORO_CHECK(EVP_DigestInit_ex(context_->digest, kind, nullptr) == 1);
  if (!sha256) Add(absl::StrCat("blob ", size_, absl::string_view("\0", 1)));
}

void Checksum::Add(std::string_view bytes) {
  MARCORO_CHECK(EVP_DigestUpdate(context_->digest, bytes.data(), bytes.size()) == 1);
}

bool Checksum::Matches() {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  MARCORO_CHECK(EVP_DigestFinal_ex(context_->digest, digest, &length) == 1);
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<char*>(digest), length)) ==
         hash_;
}

std::string StrippedEtag(std::string_view etag) {
  absl::string_view text(etag.data(), etag.size());
  absl::ConsumePrefix(&text, "W/");
  if (absl::ConsumePrefix(&text, "\"")) absl::ConsumeSuffix(&text, "\"");
  return std::string(text);
}

}  // namespace marcoro
