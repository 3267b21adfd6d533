#!/usr/bin/env bash
# Proves the CUDA side on a GPU box: run it from the folder that pack.sh made. No network, less than nine minutes.
#
#   run.sh [--output DIR] [--parts LETTERS] [--seed N] [--old-glibc]
#
#   a  every op against the reference: ragged sizes, poisoned memory, random data
#   b  logits of whole models against those of an independent implementation
#   c  a token never changes, whatever surrounds it
#   d  two and four ranks that share the GPU give the bits of one
#   e  end to end over gRPC, workers that die included
#   f  the op tests under compute-sanitizer
#   g  the speed of every op and of the server
#   h  its speed beside HF transformers', where PyTorch and transformers are installed
#
# Each part has its own time; one that fails does not keep the others from running. Prints one table and writes results.json and
# each program's output to --output (results beside this script). Leaves with 0 if nothing failed, 1 if something did, 2 for wrong
# arguments, 3 without a GPU. --seed repeats a run's random data and mixes, --old-glibc runs as on a box whose glibc is too old.
set -euo pipefail
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$folder"  # the programs look for tests/data here

output=$folder/results parts=abcdefgh seed=$((RANDOM * 32768 + RANDOM)) old=no
declare -rA what=([a]='ops against the reference' [b]='logits of whole models' [c]='a token never changes' [d]='tp 2 and 4 on one GPU'
  [e]='end to end over gRPC' [f]='compute-sanitizer' [g]='speed' [h]='beside HF transformers')
declare -rA seconds_of=([a]=90 [b]=25 [c]=40 [d]=110 [e]=60 [f]=90 [g]=105 [h]=150)
total_seconds=${MARCORO_PROOF_SECONDS:-525}  # of all parts together, whatever each of them may take

usage() {
  echo 'usage: run.sh [--output DIR] [--parts LETTERS of abcdefgh] [--seed N] [--old-glibc]' >&2
  exit 2
}
while [ $# -gt 0 ]; do
  case "$1" in
    --old-glibc) old=yes ;;
    --output | --parts | --seed)
      [ $# -ge 2 ] || usage
      case "$1" in
        --output) output=$2 ;;
        --parts) parts=$2 ;;
        --seed) seed=$2 ;;
      esac
      shift
      ;;
    *) usage ;;
  esac
  shift
done
[[ "$parts" =~ ^[a-h]+$ && "$seed" =~ ^[0-9]+$ ]] || usage
[ -f pack.txt ] || { echo 'run.sh: this folder was not made by pack.sh' >&2; exit 2; }
mkdir -p "$output"
output=$(cd "$output" && pwd)
rm -f "$output"/*.log "$output"/*.json

packed() { sed -n "s/^$1=//p" pack.txt; }

# The folders of CUDA's libraries that are not in the linker's own list: NCCL of a Python package, a driver that a container mounts.
box_libraries() {
  local file
  for file in /usr/local/nvidia/lib64/libcuda.so.1 /usr/lib/wsl/lib/libcuda.so.1 {/usr/lib,/usr/local}/python3*/*-packages/nvidia/nccl/lib/libnccl.so.2 \
    /opt/*/lib/python3*/site-packages/nvidia/nccl/lib/libnccl.so.2 /opt/*/.venv/lib/python3*/site-packages/nvidia/nccl/lib/libnccl.so.2 \
    "${VIRTUAL_ENV:-/nonexistent}"/lib/python3*/site-packages/nvidia/nccl/lib/libnccl.so.2 \
    "$HOME"/.local/lib/python3*/site-packages/nvidia/nccl/lib/libnccl.so.2 /usr/local/cuda/lib64/libnccl.so.2; do
    [ ! -e "$file" ] || dirname "$file"
  done | sort -u | paste -s -d :
}
export MARCORO_BOX_LIBRARIES
MARCORO_BOX_LIBRARIES=$(box_libraries)${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
MARCORO_BOX_LIBRARIES=${MARCORO_BOX_LIBRARIES#:}

# A box with an older glibc runs the programs with the one that was packed.
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed 's/^glibc //' || true)
printf '%s\n' "$(packed glibc)" "${glibc:-0}" | sort -V -C || old=yes
programs=$folder/bin
[ "$old" = no ] || programs=$folder/old
export MARCORO_BIN_DIR=$programs MARCORO_TEST_SEED=$seed

# our_command NAME ARGUMENT…: sets `command` to what runs one of the programs. The libraries are for it alone: the box's own programs
# have theirs.
our_command() {
  command=("$programs/$1" "${@:2}")
  [ "$old" = yes ] || command=(env "LD_LIBRARY_PATH=$folder/lib${MARCORO_BOX_LIBRARIES:+:$MARCORO_BOX_LIBRARIES}" "${command[@]}")
}

declare -a command
our_command kernels_bench --device
if ! device=$(timeout 60 "${command[@]}" 2>"$output/device.log"); then
  echo "run.sh: nothing can be proved here: $(tail -n 1 "$output/device.log")"
  exit 3
fi

json_text() {
  local text=$1
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/ }
  text=${text//$'\t'/ }
  printf '"%s"' "$(tr -d '\000-\037' <<<"$text")"
}

seconds_left() {
  local -r part_left=$((part_end - SECONDS)) all_left=$((total_seconds - SECONDS))
  echo $((part_left < all_left ? part_left : all_left))
}

# Keeps a step's result: name, passed, failed, out of time or not run, seconds, what there is to say.
declare -a step_json=() part_json=() table=()
declare -a results=() said=()  # of the part that runs
note_step() {
  step_json+=("$(printf '{"name": %s, "result": "%s", "seconds": %d, "detail": %s}' "$(json_text "$1")" "$2" "$3" "$(json_text "$4")")")
  results+=("$2")
  [ "$2" = passed ] || said+=("$1: $2${4:+ ($4)}")
}

# What a test program says of itself, from its output: its counts, or the first tests that failed, or its last words.
summary_of() {
  local failed passed
  failed=$(sed -nE 's/^\[  FAILED  \] ([^ ]+\.[^ ,]+).*/\1/p' "$1" | sort -u | head -n 3 | paste -s -d ' ')
  passed=$(sed -nE 's/^\[  PASSED  \] ([0-9]+) tests?\..*/\1/p' "$1" | tail -n 1)
  if [ -n "$failed" ]; then echo "$failed"; elif [ -n "$passed" ]; then echo "$passed tests"; else tail -n 1 "$1" | cut -c 1-200; fi
}

# step NAME: runs `command` for as long as is left. A test program that ran no test has failed.
step() {
  local -r name=$1 begin=$SECONDS
  local limit
  limit=$(seconds_left)
  if [ "$limit" -le 0 ]; then
    note_step "$name" 'not run' 0 'no time left'
    return
  fi
  local -r log=$output/$name.log
  local code=0 result=passed
  timeout --kill-after=5 "$limit" "${command[@]}" >"$log" 2>&1 </dev/null || code=$?
  case $code in
    0) ! grep -qE '^\[  PASSED  \] 0 tests' "$log" || result=failed ;;
    124 | 137) result='out of time' ;;
    *)
      result=failed
      # NCCL, say.
      ! grep -q 'error while loading shared libraries' "$log" || result='not run'
      ;;
  esac
  note_step "$name" "$result" $((SECONDS - begin)) "$(summary_of "$log")"
}

# our_step NAME PROGRAM ARGUMENT…
our_step() {
  our_command "${@:2}"
  step "$1"
}

op_tests() { (cd bin && printf '%s\n' cuda_*_gpu_test | LC_ALL=C sort); }

part_a() {
  local program
  for program in $(op_tests); do our_step "$program" "$program"; done
  our_step kernels_test kernels_test '--gtest_filter=*cuda*'
  our_step matmul_test matmul_test '--gtest_filter=*cuda*'
}

part_b() { our_step gpu_model_test gpu_model_test '--gtest_filter=*Bf16*:*Greedy*'; }

part_c() { our_step gpu_determinism_test gpu_determinism_test '--gtest_filter=*cuda_tp1*:*DeviceSampling*'; }

part_d() {
  our_step gpu_determinism_test_ranks gpu_determinism_test '--gtest_filter=*cuda_tp*-*cuda_tp1*'
  our_step gpu_serve_test_ranks gpu_serve_test '--gtest_filter=*TensorParallel*'
}

part_e() { our_step gpu_serve_test gpu_serve_test '--gtest_filter=-*TensorParallel*'; }

part_f() {
  local sanitizer program tool
  sanitizer=$(type -P compute-sanitizer || compgen -G '/usr/local/cuda*/bin/compute-sanitizer' || true)
  sanitizer=${sanitizer%%$'\n'*}
  if [ -z "$sanitizer" ]; then
    note_step compute-sanitizer 'not run' 0 'this box has no compute-sanitizer'
    return
  fi
  for tool in memcheck racecheck; do
    for program in $(op_tests); do
      our_command "$program"
      command=("$sanitizer" "--tool=$tool" --error-exitcode=86 --target-processes=all "${command[@]}")
      step "${tool}_$program"
    done
  done
}

part_g() {
  our_step kernels_bench kernels_bench --backend=cuda --json_file="$output/kernels_bench.json"
  local batch
  local -r begin=$SECONDS
  serve_7b serve_7b --model=tests/data/mistral-7b --load-format=random --context-length=4096 || return 0
  note_step serve_7b passed $((SECONDS - begin)) 'random weights'
  local -r load=(marcoro bench "--address=127.0.0.1:$port" --temperature=0 --warmup=1)
  for batch in 1 8 32; do
    our_step "decode_batch_$batch" "${load[@]}" --prompt-tokens=32 --output-tokens=192 --concurrency="$batch" \
      --requests="$((2 * batch))" --json="$output/decode_batch_$batch.json"
  done
  our_step prefill_2048 "${load[@]}" --prompt-tokens=2048 --output-tokens=1 --concurrency=1 --requests=20 \
    --json="$output/prefill_2048.json"
  stop_server
  first_token_7b
}

part_h() {
  local -r ours=$output/decode_batch_1.json
  if [ ! -s "$ours" ]; then
    note_step transformers 'not run' 0 'part g measured no batch of 1'
  elif ! timeout 60 python3 -c 'import torch, transformers' 2>/dev/null; then
    note_step transformers 'not run' 0 'this box has no PyTorch with transformers'
  else
    command=(python3 transformers_speed.py tests/data/mistral-7b/config.json "$ours" "$output/transformers.json")
    step transformers
  fi
}

# serve_7b STEP FLAG…: starts a server of the 7B shape on $port. What keeps it from that is the step's failure.
serve_7b() {
  local -r step=$1 begin=$SECONDS log=$output/$1.log
  local limit
  limit=$(seconds_left)
  if [ "$limit" -le 0 ]; then
    note_step "$step" 'not run' 0 'no time left'
    return 1
  fi
  port=$((20000 + RANDOM % 10000))
  our_command marcoro serve "${@:2}" --backend=cuda --no-prefix-cache "--listen=127.0.0.1:$port" --metrics=
  timeout --kill-after=5 "$limit" "${command[@]}" >"$log" 2>&1 </dev/null &
  server=$!
  until grep -q 'ready:' "$log"; do
    if ! kill -0 "$server" 2>/dev/null; then
      stop_server
      note_step "$step" failed $((SECONDS - begin)) "$(tail -n 1 "$log" | cut -c 1-200)"
      return 1
    fi
    sleep 0.01
  done
}

# A checkpoint of the 7B shape, all zeros: nobody has to carry it, and it takes no disk.
zero_checkpoint() {
  local -r to=$1 config=tests/data/mistral-7b/config.json
  local header='' bytes=0 layer name weight length hex=''
  number() { sed -nE "s/^ *\"$1\": ([0-9]+),?$/\1/p" "$config"; }
  tensor() {  # NAME ROWS [COLUMNS]
    local -r end=$((bytes + 2 * $2 * ${3:-1}))
    header+="${header:+,}\"$1.weight\":{\"dtype\":\"BF16\",\"shape\":[$2${3:+,$3}],\"data_offsets\":[$bytes,$end]}"
    bytes=$end
  }
  local -r hidden=$(number hidden_size) ffn=$(number intermediate_size) vocabulary=$(number vocab_size)
  local -r head=$((hidden / $(number num_attention_heads)))
  local -r keys=$((head * $(number num_key_value_heads)))
  tensor model.embed_tokens "$vocabulary" "$hidden"
  for ((layer = 0; layer < $(number num_hidden_layers); ++layer)); do
    name=model.layers.$layer
    for weight in input_layernorm post_attention_layernorm; do tensor "$name.$weight" "$hidden"; done
    for weight in q_proj o_proj; do tensor "$name.self_attn.$weight" "$hidden" "$hidden"; done
    for weight in k_proj v_proj; do tensor "$name.self_attn.$weight" "$keys" "$hidden"; done
    for weight in gate_proj up_proj; do tensor "$name.mlp.$weight" "$ffn" "$hidden"; done
    tensor "$name.mlp.down_proj" "$hidden" "$ffn"
  done
  tensor model.norm "$hidden"
  tensor lm_head "$vocabulary" "$hidden"
  while (((${#header} + 2) % 8 != 0)); do header+=' '; done
  length=$((${#header} + 2))
  for ((layer = 0; layer < 8; ++layer)); do hex+=$(printf '\\x%02x' $((length >> 8 * layer & 255))); done
  mkdir -p "$to"
  cp tests/data/mistral-7b/* "$to/"
  { printf '%b' "$hex" && printf '{%s}' "$header"; } >"$to/model.safetensors"
  truncate -s $((8 + length + bytes)) "$to/model.safetensors"
}

# From exec to the first token, with the checkpoint in the page cache.
first_token_7b() {
  local -r model=$output/zeros-7b
  local begin='' milliseconds
  zero_checkpoint "$model"
  timeout 60 cat "$model/model.safetensors" >/dev/null || true
  begin=$(date +%s%N)
  if serve_7b first_token_7b "--model=$model" --context-length=4096; then
    our_command marcoro generate "--address=127.0.0.1:$port" --temperature=0 --max-tokens=1 x
    if timeout 20 "${command[@]}" >>"$output/first_token_7b.log" 2>&1; then
      milliseconds=$((($(date +%s%N) - begin) / 1000000))
      echo "{\"milliseconds\": $milliseconds}" >"$output/first_token_7b.json"
      note_step first_token_7b passed $((milliseconds / 1000)) "$milliseconds ms from exec"
    else
      note_step first_token_7b failed 0 "$(tail -n 1 "$output/first_token_7b.log" | cut -c 1-200)"
    fi
    stop_server
  fi
  rm -r "$model"
}

# The server ends with this script, too.
server=''
stop_server() {
  if [ -z "$server" ]; then return; fi
  kill -TERM "$server" 2>/dev/null || true
  wait "$server" 2>/dev/null || true
  server=''
}
trap 'stop_server' EXIT

# The worst of a part's steps is the part's result.
worst() {
  local result
  for result in failed 'out of time' 'not run'; do
    if printf '%s\n' "${results[@]}" | grep -qx "$result"; then
      echo "$result"
      return
    fi
  done
  echo passed
}

run_part() {
  local -r part=$1 begin=$SECONDS
  results=() said=()
  part_end=$((SECONDS + seconds_of[$part]))
  step_json=()
  case $part in
    a) part_a ;;
    b) part_b ;;
    c) part_c ;;
    d) part_d ;;
    e) part_e ;;
    f) part_f ;;
    g) part_g ;;
    h) part_h ;;
  esac
  local -r result=$(worst) seconds=$((SECONDS - begin))
  local detail
  detail="${#results[@]} steps"
  if [ "${#said[@]}" -gt 0 ]; then detail=$(printf '%s; ' "${said[@]}" | cut -c 1-300); fi
  detail=${detail%; }
  part_json+=("$(printf '{"part": "%s", "name": %s, "result": "%s", "seconds": %d, "steps": [\n      %s]}' "$part" \
    "$(json_text "${what[$part]}")" "$result" "$seconds" "$(join_lines "${step_json[@]}")")")
  table+=("$(printf '%-2s %-28s %-12s %5d s  %s' "$part" "${what[$part]}" "$result" "$seconds" "$detail")")
  printf '%s\n' "${table[-1]}" >&2
  case $result in failed | 'out of time') exit_code=1 ;; esac
}

join_lines() {
  local -r first=$1
  shift
  printf '%s' "$first"
  [ $# -eq 0 ] || printf ',\n      %s' "$@"
}

# The reports that programs wrote, as members of one object.
measurements_json() {
  local name separator=''
  for name in kernels_bench decode_batch_1 decode_batch_8 decode_batch_32 prefill_2048 first_token_7b transformers; do
    if [ ! -s "$output/$name.json" ]; then continue; fi
    printf '%s"%s": %s' "$separator" "$name" "$(cat "$output/$name.json")"
    separator=', '
  done
}

exit_code=0 port=0 part_end=0
for ((i = 0; i < ${#parts}; ++i)); do run_part "${parts:i:1}"; done

{
  printf '{\n  "date": "%s",\n  "device": %s,\n  "commit": %s,\n  "architectures": %s,\n  "glibc": %s,\n  "seed": %s,\n  "seconds": %d,\n' \
    "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$device" "$(json_text "$(packed commit)")" "$(json_text "$(packed architectures)")" \
    "$(json_text "${glibc:-unknown}$([ "$old" = no ] || echo ', too old: the packed one was used')")" "$seed" "$SECONDS"
  printf '  "parts": [\n    %s],\n  "measurements": {%s}\n}\n' "$(join_lines "${part_json[@]}")" "$(measurements_json)"
} >"$output/results.json"

printf '\n%s\nseed %s, %d s\n\n' "$device" "$seed" "$SECONDS"
printf '%s\n' "${table[@]}"
if [ -s "$output/kernels_bench.json" ]; then printf '\n' && cat "$output/kernels_bench.log"; fi
if [ -s "$output/transformers.json" ]; then printf '\n' && tail -n 1 "$output/transformers.log"; fi
printf '\n%s\n' "$output/results.json"
exit "$exit_code"
