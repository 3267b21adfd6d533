#!/usr/bin/env bash
# Installs, builds and runs every test; ends with 'N passed, N failed'.
#
#   tests/run.sh [--preset cpu|asan|tsan] [--labels REGEX] [--filter REGEX] [--no-install]
#
# --labels selects tests by ctest label (unit, e2e, tools), --filter by name.
set -euo pipefail
cd "$(dirname "$0")/.."

preset=cpu labels='' filter='' install=yes
usage() {
  echo 'usage: tests/run.sh [--preset cpu|asan|tsan] [--labels REGEX] [--filter REGEX] [--no-install]' >&2
  exit 2
}
while [ $# -gt 0 ]; do
  case "$1" in
    --no-install) install=no ;;
    --preset | --labels | --filter)
      [ $# -ge 2 ] || usage
      case "$1" in
        --preset) preset=$2 ;;
        --labels) labels=$2 ;;
        --filter) filter=$2 ;;
      esac
      shift
      ;;
    *) usage ;;
  esac
  shift
done

[ "$install" = no ] || deploy/install.sh --dev
# Programs that install.sh put beside the system's own.
PATH="$PWD/build/tools/bin:$PATH"
if command -v go >/dev/null; then
  gobin=$(go env GOBIN)
  PATH="${gobin:-$(go env GOPATH)/bin}:$PATH"
fi
build=build/$preset
# So that ccache serves any clone, wherever it lies.
export CCACHE_BASEDIR="$PWD" CCACHE_NOHASHDIR=1

# Without a build there are no tests to count: that counts as one that failed.
give_up() {
  tail -n 60 "$1"
  echo '0 passed, 1 failed'
  exit 1
}

step() { printf '== %s: %s\n' "$(date +%H:%M:%S)" "$*"; }

step "configure $preset"
mkdir -p "$build"
cmake --preset "$preset" >"$build/configure.log" 2>&1 || give_up "$build/configure.log"
step "build $preset"
cmake --build "$build" >"$build/build.log" 2>&1 || give_up "$build/build.log"
step "test $preset"

export ASAN_OPTIONS=detect_leaks=1:abort_on_error=0:detect_stack_use_after_return=0
export LSAN_OPTIONS="suppressions=$PWD/tests/lsan.supp:print_suppressions=0"
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export TSAN_OPTIONS="suppressions=$PWD/tests/tsan.supp:ignore_noninstrumented_modules=1:external_symbolizer_path=/usr/bin/llvm-symbolizer-19:halt_on_error=1:second_deadlock_stack=1"

selection=()
[ -z "$labels" ] || selection+=(--label-regex "$labels")
[ -z "$filter" ] || selection+=(--tests-regex "$filter")
code=0
ctest --test-dir "$build" --parallel 2 --output-on-failure --no-tests=error --output-junit junit.xml \
  "${selection[@]}" >"$build/test.log" 2>&1 || code=$?
grep -vE '^( *[0-9]+/[0-9]+ Test .* Passed|    +Start +[0-9])' "$build/test.log" || true

# ctest's own counts, and why tests were skipped, from its report. A test whose program is missing is "notrun" too, but failed.
read -r passed failed skipped < <(python3 - "$build/junit.xml" <<'PYTHON'
import re
import sys
import xml.etree.ElementTree as tree

passed = failed = skipped = 0
for case in tree.parse(sys.argv[1]).getroot().findall("testcase"):
    message = case.find("skipped").get("message", "") if case.find("skipped") is not None else ""
    if case.get("status") == "run":
        passed += 1
    elif case.get("status") == "notrun" and message.startswith("SKIP_"):
        skipped += 1
        output = case.findtext("system-out") or ""
        reasons = re.findall(r"^SKIPPED .*?: (.*)|: Skipped\n(.+)", output, re.M)
        reason = next((a or b for a, b in reasons), "it does not say why")
        print(f"skipped: {case.get('name')}: {reason}", file=sys.stderr)
    else:
        failed += 1
print(passed, failed, skipped)
PYTHON
)
# What ctest itself complains of is a failure even if no test failed.
if [ "$code" -ne 0 ] && [ "$failed" -eq 0 ]; then failed=1; fi
[ "$failed" -eq 0 ] || code=1
echo "$passed passed, $failed failed$([ "$skipped" -eq 0 ] || echo ", $skipped skipped")"
exit "$code"
