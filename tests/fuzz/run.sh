#!/usr/bin/env bash
# Builds the fuzz targets and lets each look for inputs that crash it; ends with the count of those that found none.
#
#   tests/fuzz/run.sh [--seconds N] [TARGET…]
#
# --seconds is how long each of them looks (5); without targets all of them do. What is learned stays in build/fuzz/corpus, inputs
# that crash are left in build/fuzz/found, and build/fuzz/bin/fuzz_TARGET FILE runs one of them again. Leaves with 77 where
# clang or its fuzzer is not installed (deploy/install.sh --dev brings both).
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=5 targets=()
usage() {
  echo 'usage: tests/fuzz/run.sh [--seconds N] [TARGET…]' >&2
  exit 2
}
while [ $# -gt 0 ]; do
  case "$1" in
    --seconds)
      if [ $# -lt 2 ] || ! [[ "$2" =~ ^[1-9][0-9]*$ ]]; then usage; fi
      seconds=$2
      shift
      ;;
    -*) usage ;;
    *) targets+=("$1") ;;
  esac
  shift
done

runtime=$(clang++-19 -print-file-name=libclang_rt.fuzzer-x86_64.a 2>/dev/null || true)
if [ ! -f "$runtime" ] && ! compgen -G "$(clang++-19 -print-resource-dir 2>/dev/null)/lib/*/libclang_rt.fuzzer*.a" >/dev/null; then
  echo 'skipped: clang++-19 with libFuzzer is not installed'
  exit 77
fi

readonly build=build/fuzz
export CCACHE_BASEDIR="$PWD" CCACHE_NOHASHDIR=1
mkdir -p "$build"
if ! { cmake --preset fuzz && cmake --build --preset fuzz; } >"$build/build.log" 2>&1; then
  tail -n 60 "$build/build.log"
  exit 1
fi
python3 tests/fuzz/seeds.py "$build/seeds"
[ "${#targets[@]}" -gt 0 ] || mapfile -t targets < <(ls "$build/seeds")

export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
failed=0
mkdir -p "$build/found"
for target in "${targets[@]}"; do
  [ -d "$build/seeds/$target" ] || usage
  mkdir -p "$build/corpus/$target"
  if "$build/bin/fuzz_$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -artifact_prefix="$build/found/$target-" \
    "$build/corpus/$target" "$build/seeds/$target" >"$build/found/$target.log" 2>&1; then
    echo "$target: $(tail -n 1 "$build/found/$target.log")"
  else
    failed=$((failed + 1))
    grep -vE '^(#|INFO)' "$build/found/$target.log" | tail -n 60
    echo "FAILED: $target"
  fi
done
echo "$((${#targets[@]} - failed)) of ${#targets[@]} fuzz targets found nothing"
[ "$failed" -eq 0 ]
