// Names the place a process runs in, so that ranks which may share memory recognise each other.
#pragma once

#include <string>

namespace marcoro {

// Boot id of the kernel and the namespace of process ids. Equal for processes that can open each
// other's memory files, different on different hosts and in separate containers. Empty where the
// kernel does not tell; an empty identity equals no other.
std::string HostIdentity();

}  // namespace marcoro
