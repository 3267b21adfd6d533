// Writes a folder as a hub serves it: safetensors files, their index, and small files beside them.
// Everything goes to DIRECTORY.partial, which becomes DIRECTORY at the end: what has its name is
// whole. A writer that is destroyed before that takes the partial folder with it; one whose process
// is killed leaves it, and the next one goes on from the files that were finished.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/weights/safetensors_writer.h"

namespace marcoro {

// Tensors of one file.
using CheckpointShard = std::vector<OutputTensor>;

struct CheckpointWriterOptions {
  std::string directory;  // must not exist, or be empty; its parent must exist
  // Tells these contents from others with the same names and shapes. A partial folder of another
  // identity, or of other shards, is begun anew.
  std::string identity;
  uint64_t other_bytes = 0;  // that AddFile will need
};

class CheckpointWriter {
 public:
  // ALREADY_EXISTS if something is in the way, NOT_FOUND without the parent, ABORTED while another
  // process writes the same folder, RESOURCE_EXHAUSTED if the disk has too little room, UNAVAILABLE
  // for what else fails. At least one shard.
  static absl::StatusOr<std::unique_ptr<CheckpointWriter>> Begin(
      const CheckpointWriterOptions& options, std::vector<CheckpointShard> shards);

  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;
  ~CheckpointWriter();

  size_t shard_count() const { return shards_.size(); }
  const CheckpointShard& shard(size_t index) const { return shards_[index]; }
  // Whether an earlier run, or this one, has finished the file.
  bool IsFinished(size_t index) const { return finished_[index]; }

  // For a file that is not finished.
  absl::StatusOr<std::unique_ptr<SafetensorsWriter>> OpenShard(size_t index);
  absl::Status FinishShard(size_t index, std::unique_ptr<SafetensorsWriter> file);

  // A small file beside the weights: plain name and whole contents.
  absl::Status AddFile(const std::string& name, const std::string& contents);

  // Writes the index, if there is more than one shard, and gives the folder its name. Every shard
  // is finished. Nothing else can be called afterwards.
  absl::Status Commit();

  // "model.safetensors", or "model-00002-of-00007.safetensors".
  std::string ShardName(size_t index) const;

 private:
  CheckpointWriter(std::string directory, std::vector<CheckpointShard> shards)
      : directory_(std::move(directory)),
        partial_(directory_ + ".partial"),
        shards_(std::move(shards)),
        finished_(shards_.size()) {}

  absl::Status CheckTarget() const;
  absl::Status Lock();
  absl::Status ResumeOrClear(const std::string& identity);
  absl::Status CheckRoom(uint64_t other_bytes) const;
  bool HasWholeShard(size_t index) const;
  std::string IndexJson() const;

  const std::string directory_;
  const std::string partial_;
  const std::vector<CheckpointShard> shards_;
  std::vector<bool> finished_;
  int lock_ = -1;  // the plan file of the partial folder, locked while this writer lives
  bool owns_partial_ = false;
};

}  // namespace marcoro
