#include "tests/coordinator/api/fake_router.h"

#include <utility>

#include "absl/time/time.h"

namespace marcoro {
namespace {

constexpr absl::Duration kGenerous = absl::Seconds(30);

}  // namespace

// Like the real one: cancels on destruction, from any thread, inside a callback too.
class FakeRouter::Handle final : public RoutedSequence {
 public:
  Handle(FakeRouter* router, size_t index) : router_(router), index_(index) {}
  ~Handle() override { router_->Cancel(index_); }

 private:
  FakeRouter* const router_;
  const size_t index_;
};

FakeRouter::FakeRouter() {
  summary_.configured = 1;
  summary_.ready = 1;
  summary_.newest.set_state(worker::v1::WORKER_STATE_READY);
  summary_.newest.set_context_length(512);
  summary_.newest.set_vocabulary_size(1024);
  thread_ = std::thread([this] { Run(); });
}

FakeRouter::~FakeRouter() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

void FakeRouter::SetScript(std::function<Script(const worker::v1::Submit&)> script) {
  absl::MutexLock lock(&mutex_);
  script_ = std::move(script);
}

void FakeRouter::SetFailure(absl::Status failure, int count) {
  absl::MutexLock lock(&mutex_);
  failures_left_ = count;
  failure_ = std::move(failure);
}

void FakeRouter::SetSummary(ReplicaSummary summary) {
  absl::MutexLock lock(&mutex_);
  summary_ = std::move(summary);
}

std::unique_ptr<RoutedSequence> FakeRouter::Start(worker::v1::Submit submit, uint64_t affinity,
                                                  std::shared_ptr<SequenceSink> sink) {
  absl::MutexLock lock(&mutex_);
  sequences_.push_back({std::move(submit), affinity, std::move(sink)});
  return std::make_unique<Handle>(this, sequences_.size() - 1);
}

ReplicaSummary FakeRouter::Summary() const {
  absl::MutexLock lock(&mutex_);
  return summary_;
}

void FakeRouter::Run() {
  const auto work = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return stopping_ || played_ < sequences_.size();
  };
  while (true) {
    size_t index = 0;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(&work));
      if (stopping_) return;
      index = played_++;
    }
    Play(index);
  }
}

void FakeRouter::Play(size_t index) {
  Script script;
  absl::Status failure;
  {
    absl::MutexLock lock(&mutex_);
    if (script_) script = script_(sequences_[index].submit);
    if (failures_left_-- > 0) failure = failure_;
  }
  for (const worker::v1::SequenceUpdate& update : script) Send(index, update);
  if (!failure.ok()) Finish(index, failure);
}

void FakeRouter::Send(size_t index, const worker::v1::SequenceUpdate& update) {
  const std::shared_ptr<SequenceSink> sink = SinkOf(index);
  if (sink == nullptr) return;
  sink->OnUpdate(update);
  if (update.end() != worker::v1::SEQUENCE_END_UNSPECIFIED) Finish(index, absl::OkStatus());
}

void FakeRouter::Finish(size_t index, const absl::Status& status) {
  std::shared_ptr<SequenceSink> sink;
  {
    absl::MutexLock lock(&mutex_);
    sink = std::move(sequences_[index].sink);
  }
  if (sink != nullptr) sink->OnDone(status);
}

void FakeRouter::Cancel(size_t index) {
  std::shared_ptr<SequenceSink> sink;  // may destroy what it belongs to: not under the lock
  absl::MutexLock lock(&mutex_);
  sink = std::move(sequences_[index].sink);
  if (sink != nullptr) ++cancelled_;
}

std::shared_ptr<SequenceSink> FakeRouter::SinkOf(size_t index) const {
  absl::MutexLock lock(&mutex_);
  return sequences_[index].sink;
}

std::vector<worker::v1::Submit> FakeRouter::submits() const {
  absl::MutexLock lock(&mutex_);
  std::vector<worker::v1::Submit> submits;
  for (const Sequence& sequence : sequences_) submits.push_back(sequence.submit);
  return submits;
}

std::vector<uint64_t> FakeRouter::affinities() const {
  absl::MutexLock lock(&mutex_);
  std::vector<uint64_t> affinities;
  for (const Sequence& sequence : sequences_) affinities.push_back(sequence.affinity);
  return affinities;
}

int FakeRouter::cancelled() const {
  absl::MutexLock lock(&mutex_);
  return cancelled_;
}

int FakeRouter::running() const {
  absl::MutexLock lock(&mutex_);
  int running = 0;
  for (const Sequence& sequence : sequences_) running += sequence.sink != nullptr ? 1 : 0;
  return running;
}

bool FakeRouter::WaitForSubmits(size_t count) const {
  const auto enough = [this, count]()
                          ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return sequences_.size() >= count; };
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&enough), kGenerous);
}

bool FakeRouter::WaitForCancelled(int count) const {
  const auto enough = [this, count]()
                          ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return cancelled_ >= count; };
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&enough), kGenerous);
}

worker::v1::SequenceUpdate Tokens(const std::vector<uint32_t>& ids) {
  return Tokens(ids, worker::v1::SEQUENCE_END_UNSPECIFIED);
}

worker::v1::SequenceUpdate Tokens(const std::vector<uint32_t>& ids, worker::v1::SequenceEnd end) {
  worker::v1::SequenceUpdate update;
  update.mutable_token_ids()->Add(ids.begin(), ids.end());
  update.set_end(end);
  return update;
}

FakeRouter::Script OneByOne(const std::vector<uint32_t>& ids, worker::v1::SequenceEnd end) {
  FakeRouter::Script script;
  for (const uint32_t id : ids) script.push_back(Tokens({id}));
  if (!script.empty()) script.back().set_end(end);
  return script;
}

}  // namespace marcoro
