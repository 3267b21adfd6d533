// Tells ThreadSanitizer what absl::Mutex orders. The distribution's abseil is not instrumented, so
// the sanitizer does not see the atomics inside and takes all data under a Mutex for unprotected.
// These definitions come before the library's in symbol resolution, announce the ordering, and call
// the library's own. For test binaries of a ThreadSanitizer build only.
#include <dlfcn.h>

#include "absl/base/options.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
}

namespace {

// The library's definition of a symbol that is also defined here.
template <typename Function>
Function Next(const char* symbol) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, symbol));
}

// While the library unlocks or waits it may evaluate conditions, those of other threads too, under
// the lock but after it was announced as released.
class EvaluatingConditions {
 public:
  explicit EvaluatingConditions(const void* mutex) {
    __tsan_release(const_cast<void*>(mutex));
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  }
  ~EvaluatingConditions() { AnnotateIgnoreReadsEnd(__FILE__, __LINE__); }
};

}  // namespace

// The library's inline namespace differs between distributions (debian3, debian5 …), its length
// does not.
#define QUOTE(name) #name
#define QUOTE_VALUE(macro) QUOTE(macro)
#define MANGLED(begin, end)                            \
  begin QUOTE_VALUE(ABSL_OPTION_INLINE_NAMESPACE_NAME) \
  end
static_assert(sizeof(QUOTE_VALUE(ABSL_OPTION_INLINE_NAMESPACE_NAME)) == 8);

#define NEXT(result, symbol, ...) static const auto next = Next<result (*)(__VA_ARGS__)>(symbol)

namespace absl {
ABSL_NAMESPACE_BEGIN

void Mutex::Lock() {
  NEXT(void, MANGLED("_ZN4absl7", "5Mutex4LockEv"), Mutex*);
  next(this);
  __tsan_acquire(this);
}

void Mutex::Unlock() {
  NEXT(void, MANGLED("_ZN4absl7", "5Mutex6UnlockEv"), Mutex*);
  EvaluatingConditions evaluating(this);
  next(this);
}

bool Mutex::TryLock() {
  NEXT(bool, MANGLED("_ZN4absl7", "5Mutex7TryLockEv"), Mutex*);
  const bool locked = next(this);
  if (locked) __tsan_acquire(this);
  return locked;
}

void Mutex::ReaderLock() {
  NEXT(void, MANGLED("_ZN4absl7", "5Mutex10ReaderLockEv"), Mutex*);
  next(this);
  __tsan_acquire(this);
}

void Mutex::ReaderUnlock() {
  NEXT(void, MANGLED("_ZN4absl7", "5Mutex12ReaderUnlockEv"), Mutex*);
  EvaluatingConditions evaluating(this);
  next(this);
}

void Mutex::Await(const Condition& condition) {
  NEXT(void, MANGLED("_ZN4absl7", "5Mutex5AwaitERKNS0_9ConditionE"), Mutex*, const Condition&);
  {
    EvaluatingConditions evaluating(this);
    next(this, condition);
  }
  __tsan_acquire(this);
}

bool Mutex::AwaitWithDeadline(const Condition& condition, Time deadline) {
  NEXT(bool, MANGLED("_ZN4absl7", "5Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE"), Mutex*,
       const Condition&, Time);
  bool result;
  {
    EvaluatingConditions evaluating(this);
    result = next(this, condition, deadline);
  }
  __tsan_acquire(this);
  return result;
}

bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  NEXT(bool, MANGLED("_ZN4absl7", "5Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE"),
       Mutex*, const Condition&, Duration);
  bool result;
  {
    EvaluatingConditions evaluating(this);
    result = next(this, condition, timeout);
  }
  __tsan_acquire(this);
  return result;
}

void CondVar::Wait(Mutex* mutex) {
  NEXT(void, MANGLED("_ZN4absl7", "7CondVar4WaitEPNS0_5MutexE"), CondVar*, Mutex*);
  {
    EvaluatingConditions evaluating(mutex);
    next(this, mutex);
  }
  __tsan_acquire(mutex);
}

bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  NEXT(bool, MANGLED("_ZN4absl7", "7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE"), CondVar*,
       Mutex*, Time);
  bool result;
  {
    EvaluatingConditions evaluating(mutex);
    result = next(this, mutex, deadline);
  }
  __tsan_acquire(mutex);
  return result;
}

bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  NEXT(bool, MANGLED("_ZN4absl7", "7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE"), CondVar*,
       Mutex*, Duration);
  bool result;
  {
    EvaluatingConditions evaluating(mutex);
    result = next(this, mutex, timeout);
  }
  __tsan_acquire(mutex);
  return result;
}

void Notification::Notify() {
  NEXT(void, MANGLED("_ZN4absl7", "12Notification6NotifyEv"), Notification*);
  __tsan_release(this);
  next(this);
}

void Notification::WaitForNotification() const {
  NEXT(void, MANGLED("_ZNK4absl7", "12Notification19WaitForNotificationEv"), const Notification*);
  next(this);
  __tsan_acquire(const_cast<Notification*>(this));
}

bool Notification::WaitForNotificationWithTimeout(Duration timeout) const {
  NEXT(bool, MANGLED("_ZNK4absl7", "12Notification30WaitForNotificationWithTimeoutENS0_8DurationE"),
       const Notification*, Duration);
  const bool result = next(this, timeout);
  if (result) __tsan_acquire(const_cast<Notification*>(this));
  return result;
}

ABSL_NAMESPACE_END
}  // namespace absl
