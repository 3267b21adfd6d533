#!/usr/bin/env bash
# From a fresh Debian 12 or Ubuntu 24.04 to a first answer: installs packages, builds, serves a merge of two demo models on two
# tensor-parallel CPU workers, streams an answer, says what to try next, and stays up until Ctrl-C.
#
#   deploy/quickstart.sh [--once] [--model MODEL] [--listen HOST:PORT] [--metrics HOST:PORT] [--no-install]
#
# --once stops after the first answer.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=$root/build/cpu
model=$root/tests/data/demo/recipe.yml
listen=127.0.0.1:50051
metrics=127.0.0.1:9090
prompt='Once upon a time'
ready_timeout=600  # seconds
once=no install=yes

usage() {
  echo "usage: deploy/quickstart.sh [--once] [--model MODEL] [--listen HOST:PORT] [--metrics HOST:PORT] [--no-install]" >&2
  exit 2
}
while [ $# -gt 0 ]; do
  case "$1" in
    --once) once=yes ;;
    --no-install) install=no ;;
    --model | --listen | --metrics)
      [ $# -ge 2 ] || usage
      case "$1" in
        --model) model=$2 ;;
        --listen) listen=$2 ;;
        --metrics) metrics=$2 ;;
      esac
      shift
      ;;
    *) usage ;;
  esac
  shift
done

step() { printf '== %4ds: %s\n' "$SECONDS" "$*"; }
fail() {
  echo "quickstart.sh: $*" >&2
  exit 1
}

child=''
# Runs a command that a signal to this script ends at once: a shell would wait for what runs in its foreground.
run() {
  "$@" &
  child=$!
  local code=0
  wait "$child" || code=$?
  child=''
  return "$code"
}

# Runs a command with its output in a log, which is shown if it fails.
logged() {
  local -r log=$1
  shift
  if run "$@" >"$log" 2>&1; then return; fi
  tail -n 60 "$log" >&2
  fail "'$*' failed; all of its output is in $log"
}

# Fails if somebody listens there. (Connecting is all that bash can try; serve itself finds out for certain.)
check_free() {
  local -r flag=$1 address=$2
  local -r host=${address%:*} port=${address##*:}
  [[ "$address" == *:* && "$port" =~ ^[0-9]+$ ]] || fail "$flag $address: must be HOST:PORT, for example 127.0.0.1:50051"
  if (exec 3<>"/dev/tcp/${host/0.0.0.0/127.0.0.1}/$port") 2>/dev/null; then
    fail "$address is in use; choose another with $flag HOST:PORT"
  fi
}

server=''
stop_all() {
  local process
  for process in $child $server; do kill -TERM "$process" 2>/dev/null || true; done
  for process in $child $server; do wait "$process" || true; done
}
trap stop_all EXIT
# Ctrl-C is how this script is meant to end, once it serves; before that what is under way is given up.
serving=no
end() {
  trap '' INT TERM HUP
  echo
  step 'stopping'
  [ "$serving" = yes ] && exit 0
  exit 130
}
trap end INT TERM HUP

start_server() {
  : >"$build/serve.log"
  # serve takes its whole process tree with it, and goes even if this script is killed.
  setpriv --pdeathsig TERM "$build/bin/marcoro" serve --model "$model" --tp 2 --replicas 1 --weights fp8 --listen "$listen" --metrics "$metrics" \
    >"$build/serve.log" 2>&1 &
  server=$!
  local -r deadline=$((SECONDS + ready_timeout))
  until grep -q '^ready: ' "$build/serve.log"; do
    kill -0 "$server" 2>/dev/null || { cat "$build/serve.log" >&2; server=''; fail 'the server did not start'; }
    [ "$SECONDS" -lt "$deadline" ] || { cat "$build/serve.log" >&2; fail "the server is not ready after $ready_timeout s"; }
    sleep 0.1
  done
}

check_free --listen "$listen"
check_free --metrics "$metrics"
check_free --metrics "${metrics%:*}:$((${metrics##*:} + 1))"  # the workers'
if [ "$install" = yes ]; then
  step 'packages'
  "$root/deploy/install.sh"
fi
mkdir -p "$build"
step "build (log: $build/build.log)"
logged "$build/configure.log" cmake -S "$root" --preset cpu
logged "$build/build.log" ninja -C "$build" marcoro marcoro-coordinator marcoro-worker
step "serve $(basename "$model") on 2 tensor-parallel workers (log: $build/serve.log)"
start_server
step "first prompt: '$prompt'"
run "$build/bin/marcoro" generate --address "$listen" --max-tokens 250 --seed 2 "$prompt"
echo
if [ "$once" = yes ]; then
  step 'done'
  exit 0
fi

serving=yes
cat <<TEXT

Marcoro serves gRPC on $listen and metrics on http://$metrics/metrics. Try, in another terminal:

  $build/bin/marcoro generate --address $listen --seed 7 'Once upon a time'
  $build/bin/marcoro generate --address $listen --chat \$'Text: Tom was a baker. The horse belonged to Sara.\\nQuestion: Who had the horse?'
  ghz --insecure --call marcoro.v1.InferenceService/GenerateStream -d '{"prompt":"hi"}' -n 50 -c 8 $listen
  grpcurl -plaintext -d '{"prompt":"hi","max_tokens":16}' $listen marcoro.v1.InferenceService/Generate
  curl http://$metrics/metrics

and a model of your own (a folder, a merge recipe, or ORG/NAME of a hub): deploy/quickstart.sh --model MODEL

Ctrl-C stops it.
TEXT
wait "$server" || { code=$?; server=''; tail -n 20 "$build/serve.log" >&2; fail "the server ended by itself with code $code"; }
