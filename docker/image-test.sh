#!/usr/bin/env bash
# Builds the CPU image for real and runs it; the outputs must equal those of this checkout's .venv.
#
#   docker/image-test.sh                   what `make image-test` runs
#   docker/image-test.sh --build-only      what `make image` runs
#   docker/image-test.sh --gpu             builds Dockerfile.gpu; runs it, as no GPU is asked for,
#                                          on the processor
#
# With a Docker engine it uses that. Without one (root needed, and Debian's debootstrap and buildah)
# debootstrap makes the base image and buildah, which needs no engine, builds and runs the rest;
# images then stay in ${DEEPSZ_CACHE:-~/.cache/deepsz-caffe}/images, which may be deleted.
# Behind a proxy, the usual variables reach the build: http_proxy, PIP_INDEX_URL, and PIP_CERT, whose
# certificates are lent to it and are not in the image.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:-}
image=deepsz-caffe dockerfile=docker/Dockerfile
case $mode in
  "" | --build-only) ;;
  --gpu) image=deepsz-caffe:gpu dockerfile=docker/Dockerfile.gpu ;;
  *) sed -n '2,/^$/s/^#//p' "$0" | head -n 8 >&2; exit 2 ;;
esac
uid=12345   # any user id must do: no such user is known in the image
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

say() { printf '\n== %s\n' "$*"; }
die() { printf 'image-test: %s\n' "$*" >&2; exit 1; }

# --- the engine: build_image DOCKERFILE TAG, run [-n] ARGS..., in_image COMMAND... ---
# run: the entry point, or the program `entry`, as the user; -n without a network
arguments=()
for name in PIP_INDEX_URL GPU_ARCHITECTURES http_proxy https_proxy no_proxy; do
  [ -z "${!name:-}" ] || arguments+=(--build-arg "$name=${!name}")
done
[ -z "${PIP_CERT:-}" ] ||
  arguments+=(--secret "id=ca,src=$PIP_CERT" --build-arg PIP_CERT=/run/secrets/ca)

if docker info >/dev/null 2>&1; then
  start() { :; }
  build_image() { DOCKER_BUILDKIT=1 docker build "${arguments[@]}" -f "$1" -t "$2" .; }
  run() {
    local network=()
    [ "$1" != -n ] || { network=(--network none); shift; }
    docker run --rm "${network[@]}" ${entry:+--entrypoint "$entry"} -u "$uid:$uid" -e OPENBLAS_NUM_THREADS=1 \
      -v "$mounted:/models" "$image" "$@"
  }
  in_image() { docker run --rm -u 0 --entrypoint "$1" "$image" "${@:2}"; }
  in_base() { docker run --rm debian:bookworm "$@"; }
  configuration() { docker inspect "$image"; docker history --no-trunc "$image"; }
  image_bytes() { docker image inspect -f '{{.Size}}' "$image"; }
else
  command -v buildah >/dev/null && command -v debootstrap >/dev/null && [ "$(id -u)" = 0 ] ||
    die "no Docker engine answers; without one, be root and apt-get install buildah debootstrap"
  store=${DEEPSZ_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/deepsz-caffe}/images
  tool=(buildah --storage-driver overlay --root "$store" --runroot "$store/run")
  # vfs works everywhere, but copies everything for each instruction: 12 GB
  "${tool[@]}" info >/dev/null 2>&1 || tool[2]=vfs
  if ! "${tool[@]}" inspect --type image debian:bookworm >/dev/null 2>&1; then
    say "debian:bookworm from debootstrap"
    debootstrap --variant=minbase bookworm "$scratch/base" >"$scratch/log" 2>&1 ||
      { tail "$scratch/log"; die "debootstrap failed"; }
    rm -rf "$scratch"/base/var/cache/apt/archives/*.deb "$scratch"/base/var/lib/apt/lists/*
    : >"$scratch/base/etc/resolv.conf" >"$scratch/base/etc/hostname"   # debootstrap copies the host's
    tar -C "$scratch/base" -cf "$scratch/base.tar" .
    container=$("${tool[@]}" from scratch)
    "${tool[@]}" add --quiet "$container" "$scratch/base.tar" / >/dev/null
    "${tool[@]}" config --cmd /bin/bash "$container"
    "${tool[@]}" commit --quiet --rm "$container" debian:bookworm >/dev/null
    rm -rf "$scratch/base" "$scratch/base.tar"
  fi
  build_image() { "${tool[@]}" build --layers --isolation chroot "${arguments[@]}" -f "$1" -t "$2" .; }
  start() {   # one container of each image for all that follows
    image_container=$("${tool[@]}" from --pull-never "$image")
    base_container=$("${tool[@]}" from --pull-never debian:bookworm)
    trap '"${tool[@]}" rm "$image_container" "$base_container" >/dev/null; rm -rf "$scratch"' EXIT
    # buildah runs a command, not the entry point: read it from the image
    entry_point=$("${tool[@]}" inspect --type image --format '{{index .OCIv1.Config.Entrypoint 0}}' "$image")
  }
  within() { "${tool[@]}" run --isolation chroot --user 0 "$1" -- "${@:2}"; }
  run() {
    local network=()
    [ "$1" != -n ] || { network=(unshare --net --); shift; }
    "${network[@]}" "${tool[@]}" run --isolation chroot --user "$uid:$uid" \
      --env OPENBLAS_NUM_THREADS=1 -v "$mounted:/models" "$image_container" -- \
      "${entry:-$entry_point}" "$@"
  }
  in_image() { within "$image_container" "$@"; }
  in_base() { within "$base_container" "$@"; }
  configuration() { "${tool[@]}" inspect --type image "$image"; }
  image_bytes() { in_image du --one-file-system --bytes --summarize --exclude=/proc --exclude=/sys --exclude=/dev / 2>/dev/null | cut -f1; }
fi

mounted=$scratch/models
mkdir "$mounted"
say "build"
build_image "$dockerfile" "$image"
[ "$mode" != --build-only ] || exit 0
start

say "what fills it"
bytes=$(image_bytes)
printf '%s bytes in all\n' "$bytes"
# shellcheck disable=SC2016  # expanded by dpkg-query and the image's own shell
in_image sh -c 'dpkg-query -W -f "\${Installed-Size} KiB  \${Package}\n" | sort -rn | head -n 12
  du -sk /opt/deepsz/lib/python3.11/site-packages/* /opt/deepsz-caffe | sort -rn | head -n 15'
[ "$mode" = --gpu ] || [ "$bytes" -lt 700000000 ] || die "the image is over 700 MB"

say "what must not be in it"
scan='find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run \) -prune -o'
unsafe="$scan ! -type l \( -perm -0002 -o -perm -4000 -o -perm -2000 \) -print"
in_base sh -c "$unsafe" | sort >"$scratch/base.unsafe"
in_image sh -c "$unsafe" | sort >"$scratch/image.unsafe"
comm -13 "$scratch/base.unsafe" "$scratch/image.unsafe" >"$scratch/ours"
[ ! -s "$scratch/ours" ] || die "world-writable, setuid or setgid files of ours: $(cat "$scratch/ours")"
compilers=$(in_image sh -c 'for p in gcc g++ cc make cmake pip ld; do command -v $p; done; true')
[ -z "$compilers" ] || die "not for running: $compilers"
owner=$(in_image sh -c 'stat -c %U /opt/deepsz /opt/deepsz-caffe | sort -u')
[ "$owner" = root ] || die "the program's folders belong to $owner, so it could change itself"
[ -z "${PIP_CERT:-}" ] || ! configuration | grep -qF "$PIP_CERT" || die "the host's certificates are named"
[ -z "${PIP_INDEX_URL:-}" ] || ! configuration | grep -qF "$PIP_INDEX_URL" || die "the package index is named"
in_image sh -c '! test -s /run/secrets/ca && ! test -e /build/cache' || die "parts of the build are left"

say "doctor"
run doctor | tee "$scratch/doctor"
grep -q 'kernels.*compiled' "$scratch/doctor" || die "the slow kernels are in it"

# Everything from here on runs without a network, as a user whom the image does not know, and as
# well in this checkout's .venv; all that comes out must be the same, byte for byte.
[ -d data/mnist/test_lmdb ] || .venv/bin/deepsz mnist data/mnist
outside=$scratch/outside inside=$mounted
for folder in "$outside" "$inside"; do
  mkdir -p "$folder/data" "$folder/models"
  cp -r prototxt "$folder/"
  cp -r data/mnist "$folder/data/"
  cp models/lenet_300_100/pruned.caffemodel "$folder/models/"
  cat >"$folder/solver.prototxt" <<'SOLVER'
net: "prototxt/lenet_300_100/train_val.prototxt"
base_lr: 0.1
lr_policy: "fixed"
momentum: 0.9
max_iter: 100
random_seed: 1
test_interval: 100
test_iter: 100
snapshot_prefix: "trained"
solver_mode: CPU
SOLVER
done
chown -R "$uid:$uid" "$inside" 2>/dev/null || chmod -R a+rwX "$inside"
programs=$PWD/.venv/bin
# both OUTPUT PROGRAM ARGUMENTS...: runs it there and here, compares what it prints
both() {
  (cd "$outside" && OPENBLAS_NUM_THREADS=1 "$programs/$2" "${@:3}") >"$outside/$1" 2>"$scratch/outside.log" ||
    die "outside: $(tail -n 5 "$scratch/outside.log")"
  entry=$2 run -n "${@:3}" >"$scratch/$1" 2>"$scratch/inside.log" || die "inside: $(tail -n 5 "$scratch/inside.log")"
  cmp "$outside/$1" "$scratch/$1" || die "it says another thing inside: ${*:2}"
}
# same FILE: compares a file that it wrote there and here, and asks whose it is
same() {
  cmp "$outside/$1" "$inside/$1" || die "$1 is another inside; packages that differ: $(
    comm -23 <(sed '/^#/d; s/ .*//' docker/requirements.txt | sort) <("$programs/pip" freeze | sort) | tr '\n' ' ')"
  [ "$(stat -c %u "$inside/$1")" = "$uid" ] || die "$1 is not the caller's"
}

say "train 100 iterations with Caffe's tool"
both trained.txt caffe train -solver solver.prototxt
same trained_iter_100.caffemodel
grep -h 'Test net output.*accuracy' "$scratch/inside.log" | tail -n 1

say "compress, expand and evaluate the pruned LeNet-300-100"
network=prototxt/lenet_300_100/train_val.prototxt
both compress.json deepsz compress "$network" models/pruned.caffemodel lenet.dsz --max-loss 0.002 --json
same lenet.dsz
both expand.txt deepsz expand lenet.dsz lenet.caffemodel
same lenet.caffemodel
both dsz.json deepsz eval "$network" lenet.dsz --json
both caffemodel.json deepsz eval "$network" lenet.caffemodel --json
cmp "$scratch/dsz.json" "$scratch/caffemodel.json"
cat "$scratch/dsz.json"
entry=deepsz run -n inspect lenet.dsz

say "reproduce LeNet-300-100: nothing is mounted but MNIST, the network's files are those inside"
mounted=$scratch/mnist
mkdir -p "$mounted/data"
cp -r data/mnist "$mounted/data/"
chown -R "$uid:$uid" "$mounted" 2>/dev/null || chmod -R a+rwX "$mounted"
run -n reproduce lenet-300-100 --from-models 2>"$scratch/inside.log" || die "$(tail -n 5 "$scratch/inside.log")"
[ "$(stat -c %u "$mounted"/results/*/run.json)" = "$uid" ] || die "its results are not the caller's"

printf '\nimage-test: all passed\n'
