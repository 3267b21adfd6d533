#pragma once

#include <sys/mman.h>

#include <boost/context/stack_context.hpp>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace marcoro::simt {

// Stacks of fibers, with a page below that faults; kept for the launches that follow.
class Stacks {
 public:
  boost::context::stack_context Take() {
    if (!free_.empty()) {
      const boost::context::stack_context stack = free_.back();
      free_.pop_back();
      return stack;
    }
    void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, kGuardBytes, PROT_NONE) != 0) {
      std::fprintf(stderr, "simt: no memory for a stack\n");
      std::abort();
    }
    boost::context::stack_context stack;
    stack.size = kStackBytes;
    stack.sp = static_cast<char*>(memory) + kGuardBytes + kStackBytes;
    return stack;
  }
  void GiveBack(const boost::context::stack_context& stack) {
#ifdef __SANITIZE_ADDRESS__
    // The fiber's first frames never return: their marks are still there.
    ASAN_UNPOISON_MEMORY_REGION(static_cast<char*>(stack.sp) - stack.size, stack.size);
#endif
    free_.push_back(stack);
  }

 private:
  static constexpr size_t kStackBytes = 256 * 1024;  // of addresses; memory is taken on a touch
  static constexpr size_t kGuardBytes = 4096;

  std::vector<boost::context::stack_context> free_;
};

inline Stacks& TheStacks() {
  static auto& stacks = *new Stacks();
  return stacks;
}

}  // namespace marcoro::simt
