#include "worker/group/local_address.h"

#include <gtest/gtest.h>

#include "worker/group/host_identity.h"

namespace marcoro {
namespace {

TEST(LocalAddressTowards, IsLoopbackForLoopback) {
  EXPECT_EQ(*LocalAddressTowards("127.0.0.1:50051"), "127.0.0.1");
  EXPECT_TRUE(LocalAddressTowards("localhost:50051").ok());
}

TEST(LocalAddressTowards, RefusesWhatIsNoAddress) {
  for (const char* target : {"", "host", ":80", "host:", "no such host.invalid:80"}) {
    const absl::Status status = LocalAddressTowards(target).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << target << ": " << status;
  }
}

TEST(AddressOfGrpcPeer, UnderstandsBothFamilies) {
  EXPECT_EQ(*AddressOfGrpcPeer("ipv4:10.0.0.7:40312"), "10.0.0.7:40312");
  EXPECT_EQ(*AddressOfGrpcPeer("ipv6:[fd00::1]:40312"), "[fd00::1]:40312");
  EXPECT_EQ(*AddressOfGrpcPeer("ipv6:%5Bfd00::1%5D:40312"), "[fd00::1]:40312");
  EXPECT_FALSE(AddressOfGrpcPeer("unix:/run/marcoro.sock").ok());
}

TEST(HostIdentity, IsTheSameTwiceAndNotEmpty) {
  EXPECT_FALSE(HostIdentity().empty());
  EXPECT_EQ(HostIdentity(), HostIdentity());
}

}  // namespace
}  // namespace marcoro
