// Invariants that only a bug can break. What the outside can cause is an absl::Status instead.
#pragma once

#include <cstdio>
#include <cstdlib>

// Aborts with file, line and the condition unless it holds. Always on.
#define MARCORO_CHECK(condition)                                                         \
  do {                                                                                   \
    if (!(condition)) [[unlikely]] {                                                     \
      std::fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                      \
    }                                                                                    \
  } while (false)
