#include "worker/collective/gloo_key_store.h"

#include <gloo/common/error.h>

#include <algorithm>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace marcoro {

void GlooKeyStore::set(const std::string& key, const std::vector<char>& data) {
  ThrowUnlessOk(keys_->Set(absl::StrCat(prefix_, "/", key), std::string(data.begin(), data.end())));
}

std::vector<char> GlooKeyStore::get(const std::string& key) {
  const std::string value = Fetch(key, deadline_);
  return std::vector<char>(value.begin(), value.end());
}

void GlooKeyStore::wait(const std::vector<std::string>& keys) {
  for (const std::string& key : keys) Fetch(key, deadline_);
}

void GlooKeyStore::wait(const std::vector<std::string>& keys,
                        const std::chrono::milliseconds& timeout) {
  const absl::Time deadline = std::min(deadline_, absl::Now() + absl::FromChrono(timeout));
  for (const std::string& key : keys) Fetch(key, deadline);
}

std::string GlooKeyStore::Fetch(const std::string& key, absl::Time deadline) {
  absl::StatusOr<std::string> value = keys_->Get(
      absl::StrCat(prefix_, "/", key), std::max(absl::ZeroDuration(), deadline - absl::Now()));
  ThrowUnlessOk(value.status());
  return *std::move(value);
}

void GlooKeyStore::ThrowUnlessOk(const absl::Status& status) {
  if (status.ok()) return;
  status_ = status;
  throw ::gloo::IoException(std::string(status.message()));
}

}  // namespace marcoro
