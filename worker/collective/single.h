// The communicator of a group of one: nothing to exchange, nothing copied but the gathered rows.
#pragma once

#include <memory>

#include "worker/collective/communicator.h"

namespace marcoro {

std::unique_ptr<Communicator> MakeSingleCommunicator();

}  // namespace marcoro
