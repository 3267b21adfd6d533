#include "coordinator/routing/registry.h"

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace marcoro {
namespace {

absl::StatusOr<Target> ParseTarget(absl::string_view entry) {
  const auto invalid = [entry](absl::string_view why) {
    return absl::InvalidArgumentError(
        absl::StrCat("worker '", entry, "' ", why, "; expected host:port or dns:///host:port"));
  };
  Target target;
  absl::string_view rest = entry;
  target.resolve = absl::ConsumePrefix(&rest, "dns:///");
  const size_t colon = rest.rfind(':');
  if (colon == absl::string_view::npos) return invalid("has no port");
  target.host = std::string(rest.substr(0, colon));
  target.port = std::string(rest.substr(colon + 1));
  if (target.host.empty()) return invalid("has no host");
  const bool bracketed =
      target.host.size() > 2 && target.host.front() == '[' && target.host.back() == ']';
  if (!bracketed && target.host.find_first_of(":/[] ") != std::string::npos) {
    return invalid("has a bad host (an IPv6 address stands in brackets)");
  }
  const bool digits =
      !target.port.empty() && target.port.find_first_not_of("0123456789") == std::string::npos;
  int port = 0;
  if (!digits || !absl::SimpleAtoi(target.port, &port) || port < 1 || port > 65535) {
    return invalid("has a bad port");
  }
  return target;
}

std::string AddressText(const addrinfo& info, const std::string& port) {
  char text[NI_MAXHOST];
  if (getnameinfo(info.ai_addr, info.ai_addrlen, text, sizeof(text), nullptr, 0, NI_NUMERICHOST) !=
      0) {
    return "";
  }
  return info.ai_family == AF_INET6 ? absl::StrCat("ipv6:[", text, "]:", port)
                                    : absl::StrCat("ipv4:", text, ":", port);
}

}  // namespace

absl::StatusOr<std::vector<Target>> ParseTargets(absl::string_view targets) {
  std::vector<Target> parsed;
  for (absl::string_view entry : absl::StrSplit(targets, ',')) {
    absl::StatusOr<Target> target = ParseTarget(entry);
    if (!target.ok()) return target.status();
    parsed.push_back(*std::move(target));
  }
  return parsed;
}

absl::StatusOr<std::vector<std::string>> ResolveHost(const std::string& host,
                                                     const std::string& port) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  // The resolver wants an IPv6 address without its brackets.
  absl::string_view name = host;
  if (absl::ConsumePrefix(&name, "[")) absl::ConsumeSuffix(&name, "]");
  const int error = getaddrinfo(std::string(name).c_str(), nullptr, &hints, &found);
  if (error == EAI_NONAME || error == EAI_NODATA) return std::vector<std::string>();
  if (error != 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot resolve '", host, "': ", gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, freeaddrinfo);
  std::vector<std::string> addresses;
  for (const addrinfo* info = found; info != nullptr; info = info->ai_next) {
    std::string address = AddressText(*info, port);
    if (!address.empty()) addresses.push_back(std::move(address));
  }
  return addresses;
}

Registry::Registry(std::vector<Target> targets, ResolveFunction resolve, absl::Duration interval,
                   AddressesCallback on_addresses)
    : targets_(std::move(targets)),
      resolve_(std::move(resolve)),
      interval_(interval),
      on_addresses_(std::move(on_addresses)),
      answers_(targets_.size()) {}

Registry::~Registry() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

void Registry::Start() {
  for (size_t i = 0; i < targets_.size(); ++i) {
    if (!targets_[i].resolve) {
      answers_[i] = {absl::StrCat(targets_[i].host, ":", targets_[i].port)};
    }
  }
  on_addresses_(Addresses(/*resolve=*/false));
  const bool dynamic = std::any_of(targets_.begin(), targets_.end(),
                                   [](const Target& target) { return target.resolve; });
  if (dynamic) thread_ = std::thread([this] { ResolveUntilStopped(); });
}

void Registry::ResolveUntilStopped() {
  for (;;) {
    on_addresses_(Addresses(/*resolve=*/true));
    absl::MutexLock lock(&mutex_);
    if (mutex_.AwaitWithTimeout(absl::Condition(&stopping_), interval_)) return;
  }
}

std::vector<std::string> Registry::Addresses(bool resolve) {
  std::vector<std::string> all;
  for (size_t i = 0; i < targets_.size(); ++i) {
    if (resolve && targets_[i].resolve) {
      absl::StatusOr<std::vector<std::string>> answer =
          resolve_(targets_[i].host, targets_[i].port);
      if (answer.ok()) answers_[i] = *std::move(answer);
    }
    all.insert(all.end(), answers_[i].begin(), answers_[i].end());
  }
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  return all;
}

}  // namespace marcoro
