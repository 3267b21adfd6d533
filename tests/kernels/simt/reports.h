// What the emulator reports of a kernel.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/kernels/simt/simt.h"

namespace marcoro::simt {

inline std::vector<std::string> ReportsOf(const LaunchShape& shape,
                                          const std::function<void()>& body) {
  const ReportCollector collector;
  Launch(shape, body);
  return collector.reports();
}

// Matches the reports of a kernel with one kind of mistake, made in a line of this file.
inline auto OnlyReports(const std::string& file, int line, const std::string& text) {
  using ::testing::AllOf;
  using ::testing::Each;
  using ::testing::HasSubstr;
  using ::testing::IsEmpty;
  using ::testing::Not;
  return AllOf(Not(IsEmpty()),
               Each(AllOf(HasSubstr(file + ":" + std::to_string(line) + ": "), HasSubstr(text))));
}

}  // namespace marcoro::simt
