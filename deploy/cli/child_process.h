// A process that this one starts and that never outlives it.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace marcoro {

// Starts arguments[0] with the arguments. The child gets its own process group, so that a
// terminal's Ctrl-C reaches only its parent; /dev/null as standard input; `output` as standard
// output, if it is not -1; and SIGKILL from the kernel when the calling thread ends, however that
// happens.
absl::StatusOr<pid_t> StartProcess(const std::vector<std::string>& arguments, int output = -1);

// "exited with code 3" or "was killed by signal 9", from waitpid's status.
std::string DescribeExit(int status);

}  // namespace marcoro
