// A KeyStore in the form in which Gloo asks for its rendezvous.
#pragma once

#include <gloo/rendezvous/store.h>

#include <chrono>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "worker/collective/key_store.h"

namespace marcoro {

// Throws what Gloo expects its stores to throw; status() then says what went wrong.
class GlooKeyStore : public gloo::rendezvous::Store {
 public:
  // Waits for keys until `timeout` from now.
  GlooKeyStore(KeyStore* keys, std::string prefix, absl::Duration timeout)
      : keys_(keys), prefix_(std::move(prefix)), deadline_(absl::Now() + timeout) {}

  void set(const std::string& key, const std::vector<char>& data) override;
  std::vector<char> get(const std::string& key) override;
  void wait(const std::vector<std::string>& keys) override;
  void wait(const std::vector<std::string>& keys,
            const std::chrono::milliseconds& timeout) override;

  const absl::Status& status() const { return status_; }

 private:
  std::string Fetch(const std::string& key, absl::Time deadline);
  void ThrowUnlessOk(const absl::Status& status);

  KeyStore* const keys_;
  const std::string prefix_;
  const absl::Time deadline_;
  absl::Status status_;
};

}  // namespace marcoro
