// What the tests of the router share.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "coordinator/routing/worker_router.h"
#include "tests/coordinator/routing/fake_worker.h"

namespace marcoro {

// Asks until the condition holds; false if it does not within a generous limit.
inline bool Eventually(const std::function<bool()>& condition) {
  const absl::Time limit = absl::Now() + absl::Seconds(30);
  while (!condition()) {
    if (absl::Now() > limit) return false;
    std::this_thread::yield();
  }
  return true;
}

// A prompt of `prompt_tokens` ids that differs from seed to seed.
inline worker::v1::Submit MakeSubmit(uint64_t seed, uint32_t max_tokens, int prompt_tokens = 5) {
  worker::v1::Submit submit;
  for (int i = 0; i < prompt_tokens; ++i) {
    submit.add_prompt_ids(static_cast<uint32_t>((seed * 31 + i) % 1000));
  }
  submit.mutable_sampling()->set_seed(seed);
  submit.set_max_tokens(max_tokens);
  return submit;
}

// Patient where a test waits for something to happen, quick where it waits for time to pass.
inline RouterOptions OptionsFor(std::initializer_list<const FakeWorker*> workers) {
  std::vector<std::string> addresses;
  for (const FakeWorker* worker : workers) addresses.push_back(worker->address());
  RouterOptions options;
  options.targets = absl::StrJoin(addresses, ",");
  options.start_timeout = absl::Seconds(60);
  options.replay_timeout = absl::Seconds(60);
  options.reconnect_delay_min = absl::Milliseconds(2);
  options.reconnect_delay_max = absl::Milliseconds(20);
  options.full_retry_interval = absl::Milliseconds(5);
  options.silence_timeout = absl::Seconds(30);
  return options;
}

inline std::unique_ptr<WorkerRouter> MakeRouter(RouterOptions options) {
  return WorkerRouter::Create(std::move(options)).value();
}

inline bool WaitReady(const WorkerRouter& router, int replicas) {
  return Eventually([&] { return router.Summary().ready == replicas; });
}

}  // namespace marcoro
