// Foreign bytes: whatever they are, they become a request or an error that names a field.
#include "coordinator/api/decode_request.h"

#include <grpcpp/support/byte_buffer.h>
#include <gtest/gtest.h>

#include <random>

#include "marcoro/v1/inference.pb.h"

namespace marcoro {
namespace {

v1::GenerateRequest Sample() {
  v1::GenerateRequest request;
  for (const char* role : {"system", "user"}) {
    v1::Message* message = request.mutable_chat()->add_messages();
    message->set_role(role);
    message->set_content("caf\xc3\xa9 \xf0\x9f\x98\x80");
  }
  request.add_stop("\xe2\x82\xac");
  request.add_stop_token_ids(300);
  (*request.mutable_logit_bias())[70000] = -1;
  request.set_temperature(0.5f);
  request.set_seed(1ull << 63);
  return request;
}

absl::Status Decode(const std::string& bytes, size_t slice_size, v1::GenerateRequest* request) {
  std::vector<grpc::Slice> slices;
  for (size_t i = 0; i < bytes.size(); i += slice_size) {
    slices.emplace_back(bytes.substr(i, slice_size));
  }
  return DecodeRequest(grpc::ByteBuffer(slices.data(), slices.size()), request);
}

TEST(DecodeRequestTest, ReadsMessagesHoweverTheyAreSliced) {
  const v1::GenerateRequest sample = Sample();
  for (const size_t slice : {1, 3, 1000}) {
    v1::GenerateRequest request;
    ASSERT_TRUE(Decode(sample.SerializeAsString(), slice, &request).ok());
    EXPECT_EQ(request.SerializeAsString(), sample.SerializeAsString());
  }
}

TEST(DecodeRequestTest, AnEmptyMessageIsAMessage) {
  v1::GenerateRequest request;
  EXPECT_TRUE(Decode("", 1, &request).ok());
}

// Seeded, so that a failure repeats.
TEST(DecodeRequestTest, DamagedMessagesNeverHurt) {
  const std::string sample = Sample().SerializeAsString();
  std::mt19937 random(20240601);
  int refused = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string bytes = sample;
    for (uint32_t changes = 1 + random() % 4; changes > 0; --changes) {
      const size_t at = random() % bytes.size();
      switch (random() % 3) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes.resize(at + 1);
          break;
        case 2:
          bytes = bytes.substr(0, at) + bytes.substr(at / 2);
          break;
      }
    }
    v1::GenerateRequest request;
    const absl::Status status = Decode(bytes, 7, &request);
    if (status.ok()) continue;
    ++refused;
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_FALSE(status.message().empty());
  }
  EXPECT_GT(refused, 1000);
}

// Nesting as deep as protobuf's own parser refuses must not exhaust the stack here.
TEST(DecodeRequestTest, EndlessNestingIsRefused) {
  const std::string bytes(100'000, '\x1b');  // a group that opens and opens
  v1::GenerateRequest request;
  EXPECT_EQ(Decode(bytes, 4096, &request).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace marcoro
