#!/usr/bin/env bash
# Makes a folder that proves the CUDA side on a GPU box: run.sh there needs nothing but a driver. Beside it lies the same as an archive
# (FOLDER.tar.xz), to be carried there.
#
#   tests/gpu/pack.sh [--build DIR] [--output DIR] [--limit BYTES]
#
# --build is a build of the preset cuda (build/cuda), --output what is made anew (gpu-proof in the build's folder), --limit the most
# that the archive may take (50 MB).
#
#   run.sh pack.txt            the command, with transformers_speed.py of its last part; commit, architectures and what the programs ask of glibc
#   bin/                       programs, stripped
#   lib/                       the shared libraries that they need. CUDA's own are the box's: libcuda comes with the driver, NCCL is
#                              looked for by run.sh
#   old/                       this system's glibc with its loader, for boxes whose own is older, and a script of each program's name:
#                              programs that start others look for them beside the program that the kernel knows, the loader
#   tests/data/                the checkpoints and golden outputs that the programs read
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

required=(
  cuda_{attention,embed,gather_rows,logits,matmul,matmul_clusters,matmul_codes,matmul_quantized,matmul_warpgroups,quantize,rms_norm,rope,row_stage,sampling,swiglu}_gpu_test
  gpu_{determinism,model,serve}_test kernels_bench kernels_test marcoro marcoro-coordinator marcoro-worker matmul_test
)
data=(small tiny window sampling_cases.json)
# Parts of glibc: those of the box, or all of them from old/.
glibc='^(ld-linux.*|lib(c|m|dl|rt|pthread|resolv|util|anl|mvec|nss_.*))\.so'
from_the_box='^lib(cuda|nccl|cublas|nvidia|nvrtc)'

usage() {
  echo 'usage: tests/gpu/pack.sh [--build DIR] [--output DIR] [--limit BYTES]' >&2
  exit 2
}
fail() {
  echo "pack.sh: $*" >&2
  exit 1
}

build=$root/build/cuda output='' most_bytes=50000000
while [ $# -gt 0 ]; do
  case "$1" in
    --build | --output | --limit)
      [ $# -ge 2 ] || usage
      case "$1" in
        --build) build=$2 ;;
        --output) output=$2 ;;
        --limit) most_bytes=$2 ;;
      esac
      shift
      ;;
    *) usage ;;
  esac
  shift
done
[[ "$most_bytes" =~ ^[0-9]+$ ]] || usage
[ -n "$output" ] || output=$build/gpu-proof

check_build() {
  [ -f "$build/CMakeCache.txt" ] || fail "$build is no build: cmake --preset cuda && cmake --build --preset cuda"
  grep -q '^MARCORO_CUDA:BOOL=ON$' "$build/CMakeCache.txt" || fail "$build is a build without CUDA: cmake --preset cuda"
  local name missing=()
  for name in "${required[@]}"; do [ -x "$build/bin/$name" ] || missing+=("$name"); done
  [ "${#missing[@]}" -eq 0 ] || fail "$build/bin lacks ${missing[*]}: cmake --build $build"
  missing=()
  for name in "${data[@]}"; do [ -e "$root/tests/data/$name" ] || missing+=("$name"); done
  [ "${#missing[@]}" -eq 0 ] || fail "tests/data lacks ${missing[*]}"
}

# Only what this script made is removed.
make_folder() {
  if [ -e "$output" ]; then
    [ -f "$output/pack.txt" ] || fail "$output is there and was not made by this script"
    rm -r "$output"
  fi
  mkdir -p "$output"/{bin,lib,old,tests/data}
  : >"$output/pack.txt"
}

copy_programs() {
  local program
  for program in "${required[@]/#/$build/bin/}" "$build"/bin/cuda_*_gpu_test; do
    [ -e "$output/bin/${program##*/}" ] || strip -o "$output/bin/${program##*/}" "$program"
  done
}

copy_libraries() {
  local found missing library name
  found=$(for program in "$output"/bin/*; do ldd "$program" || fail "ldd fails on $program"; done)
  missing=$(sed -nE 's/^[[:space:]]*([^ ]+) => not found$/\1/p' <<<"$found" | sort -u | grep -vE "$from_the_box" || true)
  [ -z "$missing" ] || fail "this system lacks libraries of the programs: ${missing//$'\n'/ }"
  while read -r library; do
    name=${library##*/}
    if [[ "$name" =~ $from_the_box ]]; then continue; fi
    if [[ "$name" =~ $glibc ]]; then
      cp -L "$library" "$output/old/$name"
    else
      strip -o "$output/lib/$name" "$(readlink -f "$library")"
    fi
  done < <(sed -nE 's|^.*[[:space:]](/[^ ]+) \(0x[0-9a-f]+\)$|\1|p' <<<"$found" | sort -u)
  # Asked for by name at run time.
  library=$(ldconfig -p 2>/dev/null | sed -n 's|.*libnss_files\.so\.2 .*=> ||p' | head -n 1) || true
  [ -z "$library" ] || cp -L "$library" "$output/old/"
}

# The newest version of glibc whose symbols a program or library names.
newest_glibc() {
  readelf --version-info --wide "$output"/bin/* "$output"/lib/* |
    sed -nE 's/.*Name: GLIBC_(2\.[0-9]+).*/\1/p' | sort -uV | tail -n 1
}

write_scripts() {
  local -r loader=$(cd "$output/old" && echo ld-linux*)
  [ -f "$output/old/$loader" ] || fail 'no loader among the libraries of the programs'
  local program
  for program in "$output"/bin/*; do
    cat >"$output/old/${program##*/}" <<SCRIPT
#!/bin/sh
old=\${0%/*}
exec "\$old/$loader" --library-path "\$old:\$old/../lib\${MARCORO_BOX_LIBRARIES:+:\$MARCORO_BOX_LIBRARIES}" "\$old/../bin/${program##*/}" "\$@"
SCRIPT
    chmod +x "$output/old/${program##*/}"
  done
}

check_build
make_folder
copy_programs
copy_libraries
write_scripts
for name in "${data[@]}"; do cp -r "$root/tests/data/$name" "$output/tests/data/"; done
# Only its shape is that of the real model: weights are random, and prompts are token ids.
cp -r "$root/tests/gpu/mistral-7b" "$output/tests/data/"
cp "$root"/tests/data/tiny/tokenizer{.model,_config.json} "$output/tests/data/mistral-7b/"
cp "$root"/tests/gpu/{run.sh,transformers_speed.py} "$output/"
{
  echo "commit=$(git -C "$root" describe --always --dirty 2>/dev/null || echo unknown)"
  echo "architectures=$(sed -n 's/^CMAKE_CUDA_ARCHITECTURES:[A-Z]*=//p' "$build/CMakeCache.txt")"
  echo "glibc=$(newest_glibc)"
} >"$output/pack.txt"

# The same kernels are in many programs: a large dictionary finds them again.
archive=$output.tar.xz
tar -C "$(dirname "$output")" -c --sort=name --owner=0 --group=0 "$(basename "$output")" | xz --lzma2=preset=1,dict=96MiB >"$archive"
bytes=$(stat -c %s "$archive")
if [ "$bytes" -gt "$most_bytes" ]; then
  rm "$archive"
  find "$output" -type f -printf '%s %P\n' | sort -rn | head -n 8 >&2
  fail "$output takes $bytes bytes, compressed, more than $most_bytes"
fi
echo "$archive: $((bytes / 1000000)) MB, $(find "$output/bin" -type f | wc -l) programs, $(find "$output/lib" -type f | wc -l) libraries"
