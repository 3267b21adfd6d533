// Which workers there are: a static list, DNS names that stand for many, or both.
#pragma once

#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace marcoro {

// One entry of --workers.
struct Target {
  std::string host;
  std::string port;
  // Every address of the host is a replica of its own; otherwise the entry is one replica.
  bool resolve = false;
};

// "host:port" and "dns:///host:port" entries separated by commas; IPv6 addresses stand in brackets.
// INVALID_ARGUMENT names the bad entry.
absl::StatusOr<std::vector<Target>> ParseTargets(absl::string_view targets);

// Addresses for a host and port, in the form that MakeWorkerStream takes. Empty: the name stands
// for none at present. An error: unknown, the last answer stays good. May block.
using ResolveFunction = std::function<absl::StatusOr<std::vector<std::string>>(
    const std::string& host, const std::string& port)>;

// Asks the system's resolver for A and AAAA records.
absl::StatusOr<std::vector<std::string>> ResolveHost(const std::string& host,
                                                     const std::string& port);

// Keeps the list of addresses up to date, from a thread of its own if any target needs one.
class Registry {
 public:
  // Called with all addresses, sorted and without repetition, once from Start and then after each
  // resolution; one at a time.
  using AddressesCallback = std::function<void(std::vector<std::string>)>;

  Registry(std::vector<Target> targets, ResolveFunction resolve, absl::Duration interval,
           AddressesCallback on_addresses);
  // Waits for a resolution in progress: as long as the resolver's own timeouts at the most.
  ~Registry();

  void Start();

 private:
  void ResolveUntilStopped();
  // Brings answers_ up to date and returns all addresses.
  std::vector<std::string> Addresses(bool resolve);

  const std::vector<Target> targets_;
  const ResolveFunction resolve_;
  const absl::Duration interval_;
  const AddressesCallback on_addresses_;
  // The last good answer for each target. Touched by Start before the thread runs, and by the
  // thread.
  std::vector<std::vector<std::string>> answers_;

  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace marcoro
