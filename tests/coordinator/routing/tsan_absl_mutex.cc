// For ThreadSanitizer builds: tells it what absl::Mutex orders. The distribution's abseil is not
// instrumented, so that without this every access under a mutex looks like a race. Each function
// stands before the library's one of the same name and calls it; conditions are evaluated inside,
// by whichever thread unlocks, under a lock that the sanitizer cannot see.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/base/options.h"
#include "absl/synchronization/mutex.h"

extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
}

namespace absl {
ABSL_NAMESPACE_BEGIN

namespace {

#define MARCORO_STRING(text) #text
#define MARCORO_EXPAND(text) MARCORO_STRING(text)

// The library's function. name: its mangled name from the class on.
template <typename Function>
Function* Real(const char* name) {
  const std::string inline_namespace = MARCORO_EXPAND(ABSL_OPTION_INLINE_NAMESPACE_NAME);
  const std::string symbol =
      "_ZN4absl" + std::to_string(inline_namespace.size()) + inline_namespace + name;
  void* found = dlsym(RTLD_NEXT, symbol.c_str());
  if (found == nullptr) {
    std::fprintf(stderr, "abseil has no %s\n", symbol.c_str());
    std::abort();
  }
  return reinterpret_cast<Function*>(found);
}

class IgnoreReads {
 public:
  IgnoreReads() { AnnotateIgnoreReadsBegin(__FILE__, __LINE__); }
  ~IgnoreReads() { AnnotateIgnoreReadsEnd(__FILE__, __LINE__); }
};

// Locks, waits or tries, and is ordered after the last unlock if it holds the mutex then.
template <typename Call>
auto Acquire(void* mutex, Call call) {
  struct OnExit {
    ~OnExit() { __tsan_acquire(mutex); }
    void* mutex;
  } on_exit{mutex};
  const IgnoreReads ignore;
  return call();
}

// Gives the mutex up, for good or until it is locked again.
template <typename Call>
auto Release(void* mutex, Call call) {
  __tsan_release(mutex);
  const IgnoreReads ignore;
  return call();
}

}  // namespace

void Mutex::Lock() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  static const auto real = Real<void(Mutex*)>("5Mutex4LockEv");
  Acquire(this, [&] { real(this); });
}

bool Mutex::TryLock() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  static const auto real = Real<bool(Mutex*)>("5Mutex7TryLockEv");
  return Acquire(this, [&] { return real(this); });
}

void Mutex::Unlock() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  static const auto real = Real<void(Mutex*)>("5Mutex6UnlockEv");
  Release(this, [&] { real(this); });
}

void Mutex::ReaderLock() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  static const auto real = Real<void(Mutex*)>("5Mutex10ReaderLockEv");
  Acquire(this, [&] { real(this); });
}

void Mutex::ReaderUnlock() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  static const auto real = Real<void(Mutex*)>("5Mutex12ReaderUnlockEv");
  Release(this, [&] { real(this); });
}

void Mutex::LockWhen(const Condition& condition) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  static const auto real =
      Real<void(Mutex*, const Condition&)>("5Mutex8LockWhenERKNS0_9ConditionE");
  __tsan_release(this);
  Acquire(this, [&] { real(this, condition); });
}

void Mutex::Await(const Condition& condition) {
  static const auto real = Real<void(Mutex*, const Condition&)>("5Mutex5AwaitERKNS0_9ConditionE");
  Acquire(this, [&] { Release(this, [&] { real(this, condition); }); });
}

bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  static const auto real = Real<bool(Mutex*, const Condition&, Duration)>(
      "5Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE");
  return Acquire(this,
                 [&] { return Release(this, [&] { return real(this, condition, timeout); }); });
}

bool Mutex::AwaitWithDeadline(const Condition& condition, Time deadline) {
  static const auto real = Real<bool(Mutex*, const Condition&, Time)>(
      "5Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE");
  return Acquire(this,
                 [&] { return Release(this, [&] { return real(this, condition, deadline); }); });
}

void CondVar::Wait(Mutex* mutex) {
  static const auto real = Real<void(CondVar*, Mutex*)>("7CondVar4WaitEPNS0_5MutexE");
  Acquire(mutex, [&] { Release(mutex, [&] { real(this, mutex); }); });
}

bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  static const auto real = Real<bool(CondVar*, Mutex*, Duration)>(
      "7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE");
  return Acquire(mutex, [&] { return Release(mutex, [&] { return real(this, mutex, timeout); }); });
}

bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  static const auto real =
      Real<bool(CondVar*, Mutex*, Time)>("7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE");
  return Acquire(mutex,
                 [&] { return Release(mutex, [&] { return real(this, mutex, deadline); }); });
}

ABSL_NAMESPACE_END
}  // namespace absl
