#include "worker/collective/nccl_rendezvous.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "kernels/check.h"

namespace marcoro {
namespace {

// Begins what EncodeRankDevice writes, and changes with it.
constexpr absl::string_view kFormat = "device/1";
constexpr absl::string_view kFailed = "failed: ";
constexpr absl::string_view kDone = "done";

absl::string_view Name(DeviceCollective choice) {
  switch (choice) {
    case DeviceCollective::kAuto:
      return "auto";
    case DeviceCollective::kNccl:
      return "nccl";
    case DeviceCollective::kPeerMemory:
      return "peer-memory";
    case DeviceCollective::kStaged:
      return "staged";
  }
  return "";
}

bool AreOnOneHost(const RankDevice& a, const RankDevice& b) {
  return !a.host.empty() && a.host == b.host;
}

// What keeps ranks from NCCL, which refuses two ranks on one GPU; empty: nothing.
std::string SharedGpu(const std::vector<RankDevice>& devices) {
  for (size_t b = 0; b < devices.size(); ++b) {
    for (size_t a = 0; a < b; ++a) {
      if (AreOnOneHost(devices[a], devices[b]) && devices[a].gpu == devices[b].gpu) {
        return absl::StrCat("ranks ", a, " and ", b, " share GPU ", devices[a].gpu);
      }
    }
  }
  return "";
}

// What keeps ranks from each other's memory; empty: nothing that is known here.
std::string SeveralHosts(const std::vector<RankDevice>& devices) {
  for (size_t rank = 1; rank < devices.size(); ++rank) {
    if (!AreOnOneHost(devices[0], devices[rank])) {
      return absl::StrCat("ranks 0 and ", rank, " are not on one host");
    }
  }
  return "";
}

}  // namespace

absl::StatusOr<DeviceCollective> ParseDeviceCollective(absl::string_view name) {
  if (name == "shared-memory" || name == "gloo") return DeviceCollective::kStaged;
  for (const DeviceCollective choice :
       {DeviceCollective::kAuto, DeviceCollective::kNccl, DeviceCollective::kPeerMemory}) {
    if (name == Name(choice)) return choice;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("\"", name, "\" is none of auto, nccl, peer-memory, shared-memory, gloo"));
}

std::string EncodeRankDevice(const RankDevice& device) {
  return absl::StrCat(kFormat, " ", static_cast<int>(device.choice), " ",
                      absl::BytesToHexString(device.host), " ", absl::BytesToHexString(device.gpu));
}

absl::StatusOr<RankDevice> DecodeRankDevice(absl::string_view text) {
  const std::vector<absl::string_view> parts = absl::StrSplit(text, ' ');
  const auto is_hex = [](absl::string_view part) {
    return part.size() % 2 == 0 &&
           std::all_of(part.begin(), part.end(), [](char c) { return absl::ascii_isxdigit(c); });
  };
  if (parts.size() != 4 || parts[0] != kFormat || parts[1].size() != 1 || parts[1][0] < '0' ||
      parts[1][0] > '3' || !is_hex(parts[2]) || !is_hex(parts[3])) {
    return absl::InvalidArgumentError(
        absl::StrCat("another version of this program? A rank's device is told as \"",
                     absl::CHexEscape(text), "\""));
  }
  return RankDevice{.choice = static_cast<DeviceCollective>(parts[1][0] - '0'),
                    .host = absl::HexStringToBytes(parts[2]),
                    .gpu = absl::HexStringToBytes(parts[3])};
}

absl::StatusOr<DevicePath> ChooseDevicePath(const std::vector<RankDevice>& devices) {
  MARCORO_CHECK(!devices.empty());
  const DeviceCollective choice = devices[0].choice;
  if (choice == DeviceCollective::kStaged) return DevicePath();
  const std::string shared = SharedGpu(devices);
  const std::string apart = SeveralHosts(devices);
  if (choice == DeviceCollective::kNccl && !shared.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("--collective=nccl needs a GPU for each rank: ", shared));
  }
  if (choice == DeviceCollective::kPeerMemory && !apart.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("--collective=peer-memory needs all ranks on one host: ", apart));
  }
  return DevicePath{.nccl = shared.empty() && choice != DeviceCollective::kPeerMemory,
                    .peer_memory = apart.empty(),
                    .may_do_without = choice != DeviceCollective::kPeerMemory};
}

Rendezvous::Rendezvous(KeyStore& keys, std::string prefix, int rank, int size,
                       absl::Duration timeout)
    : keys_(keys),
      prefix_(std::move(prefix)),
      rank_(rank),
      size_(size),
      deadline_(absl::Now() + timeout) {}

absl::Duration Rendezvous::TimeLeft() const {
  return std::max(absl::ZeroDuration(), deadline_ - absl::Now());
}

std::string Rendezvous::Key(absl::string_view what, int rank) const {
  return absl::StrCat(prefix_, "/", what, "/", rank);
}

absl::StatusOr<std::vector<std::string>> Rendezvous::Exchange(absl::string_view what,
                                                              absl::string_view value) {
  // Stores may carry text only.
  const absl::Status told = keys_.Set(Key(what, rank_), absl::BytesToHexString(value));
  if (!told.ok()) return told;
  std::vector<std::string> values;
  for (int rank = 0; rank < size_; ++rank) {
    absl::StatusOr<std::string> other = keys_.Get(Key(what, rank), TimeLeft());
    if (!other.ok()) return other.status();
    values.push_back(absl::HexStringToBytes(*other));
  }
  return values;
}

absl::StatusOr<std::string> Rendezvous::FromRoot(absl::string_view what, absl::string_view value) {
  if (rank_ == 0) {
    const absl::Status told = keys_.Set(Key(what, 0), absl::BytesToHexString(value));
    if (!told.ok()) return told;
    return std::string(value);
  }
  absl::StatusOr<std::string> told = keys_.Get(Key(what, 0), TimeLeft());
  if (!told.ok()) return told.status();
  return absl::HexStringToBytes(*told);
}

absl::Status Rendezvous::Agree(absl::string_view what, const absl::Status& own) {
  const auto answers =
      Exchange(what, own.ok() ? std::string(kDone) : absl::StrCat(kFailed, own.message()));
  if (!own.ok()) return own;
  if (!answers.ok()) return answers.status();
  for (size_t rank = 0; rank < answers->size(); ++rank) {
    absl::string_view answer = (*answers)[rank];
    if (absl::ConsumePrefix(&answer, kFailed)) {
      return absl::FailedPreconditionError(absl::StrCat("rank ", rank, ": ", answer));
    }
  }
  return absl::OkStatus();
}

}  // namespace marcoro
