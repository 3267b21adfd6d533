#!/usr/bin/env bash
# Installs, builds and runs every test; ends with 'N passed, N failed'.
#
#   tests/run.sh [--preset cpu|asan|tsan] [--labels REGEX] [--filter REGEX] [--no-install]
#
# --labels selects tests by ctest label (unit, e2e, tools), --filter by name.
set -euo pipefail
cd "$(dirname "$0")/.."

preset=cpu labels='' filter='' install=yes
while [ $# -gt 0 ]; do
  case "$1" in
    --preset) preset=$2; shift 2 ;;
    --labels) labels=$2; shift 2 ;;
    --filter) filter=$2; shift 2 ;;
    --no-install) install=no; shift ;;
    *) echo "usage: tests/run.sh [--preset cpu|asan|tsan] [--labels REGEX] [--filter REGEX] [--no-install]" >&2; exit 2 ;;
  esac
done

[ "$install" = no ] || deploy/install.sh --dev
if command -v go >/dev/null; then PATH="$(go env GOPATH)/bin:$PATH"; fi
build=build/$preset

step() { printf '== %s: %s\n' "$(date +%H:%M:%S)" "$*"; }

step "configure $preset"
mkdir -p "$build"
cmake --preset "$preset" >"$build/configure.log" 2>&1 || { cat "$build/configure.log"; exit 1; }
step "build $preset"
cmake --build "$build" >"$build/build.log" 2>&1 || { tail -n 60 "$build/build.log"; exit 1; }
step "test $preset"

export ASAN_OPTIONS=detect_leaks=1:abort_on_error=0:detect_stack_use_after_return=0
export LSAN_OPTIONS="suppressions=$PWD/tests/lsan.supp:print_suppressions=0"
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export TSAN_OPTIONS="suppressions=$PWD/tests/tsan.supp:ignore_noninstrumented_modules=1:halt_on_error=1:second_deadlock_stack=1"

selection=()
[ -z "$labels" ] || selection+=(--label-regex "$labels")
[ -z "$filter" ] || selection+=(--tests-regex "$filter")
code=0
ctest --test-dir "$build" --parallel 2 --output-on-failure --no-tests=error --output-junit junit.xml \
  "${selection[@]}" >"$build/test.log" 2>&1 || code=$?
grep -vE '^( *[0-9]+/[0-9]+ Test .* Passed|      Start )' "$build/test.log" || true

# ctest's own counts, from its report.
read -r total failed skipped < <(python3 - "$build/junit.xml" <<'PYTHON'
import sys
import xml.etree.ElementTree as tree
cases = tree.parse(sys.argv[1]).getroot().findall("testcase")
print(len(cases), sum(c.get("status") == "fail" for c in cases),
      sum(c.get("status") in ("notrun", "disabled") for c in cases))
PYTHON
)
[ "$failed" -eq 0 ] || code=1
if [ "$skipped" -gt 0 ]; then
  echo "$((total - failed - skipped)) passed, $failed failed, $skipped skipped"
else
  echo "$((total - failed)) passed, $failed failed"
fi
exit "$code"
