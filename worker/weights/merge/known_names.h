// What a message says after a name that is not known.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace marcoro {

// The known name that `name` is most likely a slip of: at most a third of its letters (and at least
// two may) are wrong. Empty if there is none.
std::string_view NearestName(std::string_view name, const std::vector<std::string_view>& known);

// "(did you mean slerp? known: linear, slerp)"; without the question if no name is near.
std::string KnownNames(std::string_view name, const std::vector<std::string_view>& known);

}  // namespace marcoro
