// Sends requests over several channels and measures what comes back.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "absl/time/time.h"
#include "deploy/cli/samples.h"
#include "marcoro/v1/inference.pb.h"

namespace marcoro {

struct LoadOptions {
  std::string address;
  int channels = 4;          // connections; requests take them in turn
  int concurrency = 1;       // closed loop: requests in flight, always
  double rate = 0;           // open loop if > 0: requests per second
  int max_in_flight = 1024;  // open loop: one more is not sent
  uint64_t requests = 100;   // ends after so many are sent or could not be
  absl::Duration duration = absl::InfiniteDuration();  // sends no more after that time
  absl::Duration timeout = absl::Minutes(10);          // of each request
  uint64_t seed = 0;                                   // of the arrivals
};

struct LoadResult {
  // In seconds. Times count from when a request was due: in an open loop a client that lags shows.
  Samples first_token, inter_token, end_to_end, queue;
  uint64_t succeeded = 0;
  uint64_t failed = 0;
  uint64_t not_sent = 0;  // open loop: too many were in flight
  uint64_t prompt_tokens = 0;
  uint64_t output_tokens = 0;
  double seconds = 0;                              // from the start to the last answer
  bool gave_up = false;                            // stopped after kMostFailures failures in a row
  std::map<std::string, uint64_t> errors;          // by code
  std::map<std::string, std::string> first_error;  // of each code: the whole line

  // Adds what a later run measured.
  void Add(const LoadResult& later);
};

// A closed loop against a dead server would spin.
inline constexpr int kMostFailures = 1000;

// Sends request(first_index), request(first_index + 1), … `request` is called from several threads.
LoadResult RunLoad(const LoadOptions& options,
                   const std::function<v1::GenerateRequest(uint64_t index)>& request,
                   uint64_t first_index = 0);

}  // namespace marcoro
