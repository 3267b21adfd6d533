#include "worker/engine/host_step_sampler.h"

#include <utility>

namespace marcoro {
namespace {

OutputLogprob ToOutput(TokenLogprob logprob) { return {logprob.logprob, std::move(logprob.top)}; }

}  // namespace

void HostStepSampler::Open(SequenceId id, const EngineRequest& request,
                           absl::Span<const TokenId> generated) {
  sequences_[id] = {&request,
                    std::make_unique<SequenceSampler>(request.sampling, request.prompt, generated)};
}

absl::Status HostStepSampler::Queue(absl::Span<const SampleJob> jobs, const Tensor& logits) {
  results_.clear();
  results_.resize(jobs.size());
  for (size_t begin = 0; begin < jobs.size();) {
    if (jobs[begin].rows == 0) {
      ++begin;
      continue;
    }
    size_t end = begin + 1;
    int64_t next_row = jobs[begin].first_row + jobs[begin].rows;
    for (; end < jobs.size(); ++end) {
      if (jobs[end].rows > 0 && jobs[end].first_row != next_row) break;
      next_row += jobs[end].rows;
    }
    if (absl::Status status = DoAdjacent(jobs, begin, end, logits); !status.ok()) return status;
    begin = end;
  }
  return absl::OkStatus();
}

absl::Status HostStepSampler::Take(std::vector<SampledStep>* results) {
  results->swap(results_);
  return absl::OkStatus();
}

// Jobs side by side on all threads.
absl::Status HostStepSampler::DoAdjacent(absl::Span<const SampleJob> jobs, size_t begin, size_t end,
                                         const Tensor& logits) {
  const int64_t first_row = jobs[begin].first_row;
  int64_t rows = 0;
  for (size_t i = begin; i < end; ++i) rows += jobs[i].rows;
  MARCORO_CHECK(first_row >= 0 && first_row + rows <= logits.rows);
  const Tensor computed = logits.Rows(first_row, rows);
  summaries_.resize(static_cast<size_t>(rows));
  backend_.SummarizeLogits(computed, absl::MakeSpan(summaries_));
  const absl::StatusOr<Tensor> readable = OnHost(computed);
  if (!readable.ok()) return readable.status();
  backend_.ParallelFor(static_cast<int64_t>(end - begin), [&](int64_t i) {
    const SampleJob& job = jobs[begin + static_cast<size_t>(i)];
    if (job.rows == 0) return;
    const int64_t row = job.first_row - first_row;
    Do(job, readable->Rows(row, job.rows),
       absl::MakeConstSpan(summaries_).subspan(row, static_cast<size_t>(job.rows)),
       &results_[begin + static_cast<size_t>(i)]);
  });
  return absl::OkStatus();
}

// The same logits where the samplers can read them.
absl::StatusOr<Tensor> HostStepSampler::OnHost(const Tensor& logits) {
  if (backend_.host_memory()) return logits;
  MARCORO_CHECK(logits.stride == logits.columns);
  host_logits_.resize(static_cast<size_t>(logits.rows * logits.columns));
  absl::Status status =
      backend_.Download(logits.data, host_logits_.data(), host_logits_.size() * sizeof(float));
  if (!status.ok()) return status;
  return Tensor(host_logits_.data(), DType::kF32, logits.rows, logits.columns);
}

void HostStepSampler::Do(const SampleJob& job, const Tensor& logits,
                         absl::Span<const LogitSummary> summaries, SampledStep* sampled) {
  const Sequence& sequence = sequences_.find(job.id)->second;
  const EngineRequest& request = *sequence.request;
  const auto row = [&](int64_t index) {
    return absl::MakeConstSpan(logits.Row<float>(index), logits.columns);
  };
  for (const LogitSummary& summary : summaries) {
    if (!summary.has_nan) continue;
    sampled->error = EndError::kNotANumber;
    sampled->detail = "the model computed NaN for this sequence";
    return;
  }
  thread_local SamplingScratch scratch;  // memory only
  for (int32_t i = 0; i < job.prompt_rows; ++i) {
    const TokenId token = request.prompt[job.prompt_token + i];
    sampled->prompt_logprobs.push_back(ToOutput(
        LogprobOf(row(i), summaries[i], token, request.prompt_logprobs, &scratch.candidates)));
  }
  if (!job.samples) return;
  const int64_t last = logits.rows - 1;
  auto result = sequence.sampler->Sample(row(last), summaries[last], &scratch);
  if (!result.ok()) {
    sampled->error = absl::IsDataLoss(result.status()) ? EndError::kNotANumber : EndError::kInvalid;
    sampled->detail = std::string(result.status().message());
    return;
  }
  sampled->result = *std::move(result);
  sequence.sampler->Append(sampled->result.token);
}

}  // namespace marcoro
