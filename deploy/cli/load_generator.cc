#include "deploy/cli/load_generator.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "deploy/cli/arrivals.h"
#include "deploy/cli/rpc_error.h"
#include "marcoro/v1/inference.grpc.pb.h"

namespace marcoro {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

// What one request measured.
struct CallRecord {
  struct Gap {
    double seconds_per_token;
    int tokens;
  };
  std::optional<double> first_token;  // seconds since it was due
  std::vector<Gap> gaps;
  double end_to_end = 0;
  double queue = 0;
  v1::Usage usage;
};

// One GenerateStream call; deletes itself when it is over.
class StreamCall final : public grpc::ClientReadReactor<v1::GenerateStreamResponse> {
 public:
  using Finished = std::function<void(const CallRecord&, const grpc::Status&)>;

  StreamCall(v1::GenerateRequest request, Clock::time_point due, Finished finished)
      : request_(std::move(request)), due_(due), finished_(std::move(finished)) {}

  void Start(v1::InferenceService::Stub* stub, absl::Duration timeout) {
    context_.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
    stub->async()->GenerateStream(&context_, &request_, this);
    StartRead(&response_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    const Clock::time_point now = Clock::now();
    int tokens = 0;
    for (const v1::Choice& choice : response_.choices()) tokens += choice.token_ids_size();
    if (tokens > 0) {
      if (record_.first_token) {
        record_.gaps.push_back({Seconds(now - last_) / tokens, tokens});
      } else {
        record_.first_token = Seconds(now - due_);
      }
      last_ = now;
    }
    if (response_.has_usage()) record_.usage = response_.usage();
    if (response_.has_timings()) record_.queue = response_.timings().queue_seconds();
    response_.Clear();
    StartRead(&response_);
  }

  void OnDone(const grpc::Status& status) override {
    record_.end_to_end = Seconds(Clock::now() - due_);
    const CallRecord record = std::move(record_);
    const Finished finished = std::move(finished_);
    // Before anybody hears of the end: the call holds on to its channel, and gRPC's client aborts
    // if its last channel goes on one of its own threads.
    delete this;
    finished(record, status);
  }

 private:
  const v1::GenerateRequest request_;
  const Clock::time_point due_;
  Finished finished_;
  grpc::ClientContext context_;
  v1::GenerateStreamResponse response_;
  Clock::time_point last_;
  CallRecord record_;
};

class LoadRun {
 public:
  LoadRun(const LoadOptions& options,
          const std::function<v1::GenerateRequest(uint64_t index)>& request, uint64_t first_index)
      : options_(options), request_(request), first_index_(first_index) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection of its own for each
    for (int i = 0; i < options.channels; ++i) {
      stubs_.push_back(v1::InferenceService::NewStub(grpc::CreateCustomChannel(
          options.address, grpc::InsecureChannelCredentials(), arguments)));
    }
  }

  LoadResult Run() {
    start_ = Clock::now();
    end_ = options_.duration == absl::InfiniteDuration()
               ? Clock::time_point::max()
               : start_ + absl::ToChronoNanoseconds(options_.duration);
    if (options_.rate > 0) {
      RunOpenLoop();
    } else {
      for (int i = 0; i < options_.concurrency; ++i) SendNext();
    }
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(+[](int* in_flight) { return *in_flight == 0; }, &in_flight_));
    return std::move(result_);
  }

 private:
  void RunOpenLoop() ABSL_LOCKS_EXCLUDED(mutex_) {
    PoissonArrivals arrivals(options_.rate, options_.seed);
    while (true) {
      const auto due = start_ + std::chrono::duration_cast<Clock::duration>(
                                    std::chrono::duration<double>(arrivals.Next()));
      if (due >= end_) return;
      std::this_thread::sleep_until(due);
      uint64_t index = 0;
      {
        absl::MutexLock lock(&mutex_);
        if (sent_ + result_.not_sent == options_.requests || result_.gave_up) return;
        if (in_flight_ >= options_.max_in_flight) {
          ++result_.not_sent;
          continue;
        }
        index = sent_++;
        ++in_flight_;
      }
      Send(index, due);
    }
  }

  // Closed loop: the next request, if there is one.
  void SendNext() ABSL_LOCKS_EXCLUDED(mutex_) {
    const Clock::time_point now = Clock::now();
    uint64_t index = 0;
    {
      absl::MutexLock lock(&mutex_);
      if (sent_ == options_.requests || result_.gave_up || now >= end_) return;
      index = sent_++;
      ++in_flight_;
    }
    Send(index, now);
  }

  void Send(uint64_t index, Clock::time_point due) ABSL_LOCKS_EXCLUDED(mutex_) {
    auto* call = new StreamCall(request_(first_index_ + index), due,
                                [this](const CallRecord& record, const grpc::Status& status) {
                                  OnFinished(record, status);
                                });
    call->Start(stubs_[index % stubs_.size()].get(), options_.timeout);
  }

  void OnFinished(const CallRecord& record, const grpc::Status& status)
      ABSL_LOCKS_EXCLUDED(mutex_) {
    {
      absl::MutexLock lock(&mutex_);
      result_.seconds = Seconds(Clock::now() - start_);
      if (status.ok()) {
        Count(record);
      } else {
        CountError(status);
      }
    }
    // Before this request counts as gone, so that Run waits for the next one too.
    if (options_.rate <= 0) SendNext();
    absl::MutexLock lock(&mutex_);
    --in_flight_;
  }

  void Count(const CallRecord& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    failures_in_a_row_ = 0;
    ++result_.succeeded;
    if (record.first_token) result_.first_token.Add(*record.first_token);
    for (const CallRecord::Gap& gap : record.gaps) {
      for (int i = 0; i < gap.tokens; ++i) result_.inter_token.Add(gap.seconds_per_token);
    }
    result_.end_to_end.Add(record.end_to_end);
    result_.queue.Add(record.queue);
    result_.prompt_tokens += record.usage.prompt_tokens();
    result_.output_tokens += record.usage.generated_tokens();
  }

  void CountError(const grpc::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    ++result_.failed;
    if (++failures_in_a_row_ == kMostFailures) result_.gave_up = true;
    const absl::Status error =
        DescribeRpcError(status.error_code(), status.error_message(), status.error_details());
    const std::string code = absl::StatusCodeToString(error.code());
    ++result_.errors[code];
    result_.first_error.try_emplace(code, error.message());
  }

  const LoadOptions& options_;
  const std::function<v1::GenerateRequest(uint64_t index)>& request_;
  const uint64_t first_index_;
  std::vector<std::unique_ptr<v1::InferenceService::Stub>> stubs_;
  Clock::time_point start_;
  Clock::time_point end_;

  absl::Mutex mutex_;
  uint64_t sent_ ABSL_GUARDED_BY(mutex_) = 0;
  int in_flight_ ABSL_GUARDED_BY(mutex_) = 0;
  int failures_in_a_row_ ABSL_GUARDED_BY(mutex_) = 0;
  LoadResult result_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

void LoadResult::Add(const LoadResult& later) {
  first_token.Add(later.first_token);
  inter_token.Add(later.inter_token);
  end_to_end.Add(later.end_to_end);
  queue.Add(later.queue);
  succeeded += later.succeeded;
  failed += later.failed;
  not_sent += later.not_sent;
  prompt_tokens += later.prompt_tokens;
  output_tokens += later.output_tokens;
  seconds += later.seconds;
  gave_up = gave_up || later.gave_up;
  for (const auto& [code, count] : later.errors) errors[code] += count;
  first_error.insert(later.first_error.begin(), later.first_error.end());
}

LoadResult RunLoad(const LoadOptions& options,
                   const std::function<v1::GenerateRequest(uint64_t index)>& request,
                   uint64_t first_index) {
  return LoadRun(options, request, first_index).Run();
}

}  // namespace marcoro
