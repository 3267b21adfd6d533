#include "worker/collective/shared_segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <new>
#include <vector>

#include "absl/random/random.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/check.h"

namespace marcoro {
namespace {

constexpr size_t kPageBytes = 4096;
// Changes with the layout, so that two versions of the program never share a segment.
constexpr uint64_t kLayout = 0x4d6172636f726f01;

absl::Status SystemError(absl::string_view what) {
  return absl::FailedPreconditionError(
      absl::StrCat("shared memory: ", what, ": ", std::strerror(errno)));
}

}  // namespace

struct SharedSegment::Header {
  uint64_t layout;
  uint64_t token;
  RankFlags flags[kMaxRanks];
};

SharedSegment::SharedSegment(int file, int ranks, size_t slot_bytes)
    : file_(file), ranks_(ranks), slot_bytes_(slot_bytes) {
  static_assert(sizeof(Header) <= kPageBytes);
  MARCORO_CHECK(ranks >= 1 && ranks <= kMaxRanks);
  MARCORO_CHECK(slot_bytes > 0 && slot_bytes % kPageBytes == 0);
}

SharedSegment::~SharedSegment() {
  if (base_ != nullptr) munmap(base_, TotalBytes());
  close(file_);
}

absl::StatusOr<std::unique_ptr<SharedSegment>> SharedSegment::Create(int ranks, size_t slot_bytes) {
  const int file = memfd_create("marcoro-collective", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (file < 0) return SystemError("memfd_create");
  std::unique_ptr<SharedSegment> segment(new SharedSegment(file, ranks, slot_bytes));
  // Allocated now, so that a lack of memory is an error here and no SIGBUS later.
  const int error = posix_fallocate(file, 0, static_cast<off_t>(segment->TotalBytes()));
  if (error != 0) {
    errno = error;
    return SystemError(absl::StrCat("allocating ", segment->TotalBytes(), " bytes"));
  }
  if (fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) return SystemError("sealing");
  if (absl::Status status = segment->Map(); !status.ok()) return status;
  if (absl::Status status = segment->LockAlive(0); !status.ok()) return status;
  auto* header = new (segment->base_) Header();
  header->layout = kLayout;
  header->token = absl::Uniform<uint64_t>(absl::BitGen());
  segment->handle_ = absl::StrCat(getpid(), " ", file, " ", header->token);
  return segment;
}

absl::StatusOr<std::unique_ptr<SharedSegment>> SharedSegment::Open(absl::string_view handle,
                                                                   int rank, int ranks,
                                                                   size_t slot_bytes) {
  const std::vector<absl::string_view> parts = absl::StrSplit(handle, ' ');
  pid_t process = 0;
  int remote_file = 0;
  uint64_t token = 0;
  if (parts.size() != 3 || !absl::SimpleAtoi(parts[0], &process) ||
      !absl::SimpleAtoi(parts[1], &remote_file) || !absl::SimpleAtoi(parts[2], &token)) {
    return absl::FailedPreconditionError(
        absl::StrCat("shared memory: rank 0 sent a handle that is none: ", handle));
  }
  const std::string path = absl::StrCat("/proc/", process, "/fd/", remote_file);
  const int file = open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (file < 0) return SystemError(absl::StrCat("opening rank 0's segment ", path));
  std::unique_ptr<SharedSegment> segment(new SharedSegment(file, ranks, slot_bytes));
  struct stat properties;
  if (fstat(file, &properties) != 0) return SystemError("fstat");
  const absl::Status not_the_segment = absl::FailedPreconditionError(
      absl::StrCat("shared memory: ", path, " is not rank 0's segment"));
  if (!S_ISREG(properties.st_mode) ||
      properties.st_size != static_cast<off_t>(segment->TotalBytes())) {
    return not_the_segment;
  }
  if (absl::Status status = segment->Map(); !status.ok()) return status;
  const auto* header = reinterpret_cast<const Header*>(segment->base_);
  if (header->layout != kLayout || header->token != token) return not_the_segment;
  if (absl::Status status = segment->LockAlive(rank); !status.ok()) return status;
  segment->handle_ = std::string(handle);
  return segment;
}

absl::Status SharedSegment::Map() {
  void* base =
      mmap(nullptr, TotalBytes(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file_, 0);
  if (base == MAP_FAILED) return SystemError("mmap");
  base_ = static_cast<char*>(base);
  return absl::OkStatus();
}

absl::Status SharedSegment::LockAlive(int rank) {
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = rank;
  lock.l_len = 1;
  // A lock of the open file, not of the process: it does not end when the process closes some other
  // descriptor of the segment.
  if (fcntl(file_, F_OFD_SETLK, &lock) != 0) {
    return SystemError(absl::StrCat("locking the byte of rank ", rank));
  }
  return absl::OkStatus();
}

bool SharedSegment::IsAlive(int rank) const {
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = rank;
  lock.l_len = 1;
  return fcntl(file_, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

size_t SharedSegment::TotalBytes() const {
  return kPageBytes + 2 * static_cast<size_t>(ranks_) * slot_bytes_;
}

RankFlags& SharedSegment::flags(int rank) const {
  return reinterpret_cast<Header*>(base_)->flags[rank];
}

char* SharedSegment::slot(int rank, uint32_t parity) const {
  const size_t index = static_cast<size_t>(parity) * static_cast<size_t>(ranks_) + rank;
  return base_ + kPageBytes + index * slot_bytes_;
}

}  // namespace marcoro
