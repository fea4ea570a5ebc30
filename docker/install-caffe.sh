#!/usr/bin/env bash
# Builds BVLC Caffe 1.0 with pycaffe for Python 3.11 and installs it into a virtual environment.
#
#   docker/install-caffe.sh VENV [--gpu]     e.g. docker/install-caffe.sh .venv
#   docker/install-caffe.sh --packages       only names the Debian packages it needs
#
# The result is one wheel, kept in ${DEEPSZ_CACHE:-${XDG_CACHE_HOME:-~/.cache}/deepsz-caffe} under a
# name that holds the hash of this file: a second run, or another checkout, installs it in seconds.
# Beyond Debian's packages nothing goes into system folders. An interrupted build leaves nothing
# behind: work happens in a temporary folder, and the wheel is renamed into the cache when complete.
set -euo pipefail

# PyPI's brocolli-caffe 3.0.0 carries BVLC's tree at commit 9b891540 but for two files under src/
# (a protobuf 3.21 fix in io.cpp; an HDF5 branch of net.cpp). Its other versions are another fork.
sdist=brocolli-caffe==3.0.0
sdist_sha256=ad7ba487552f4343df25044a9fa14812a96add48ea2ff993b53bf2dafe8248e2
build_packages=(cmake g++ make libboost-python-dev libboost-system-dev libboost-thread-dev
  libboost-filesystem-dev libprotobuf-dev protobuf-compiler libgoogle-glog-dev libgflags-dev
  libhdf5-dev liblmdb-dev libopenblas-dev patchelf)
# What the built wheel needs to run; docker/Dockerfile installs only these in the final image.
runtime_packages=(libboost-python1.74.0 libboost-system1.74.0 libboost-thread1.74.0
  libboost-filesystem1.74.0 libprotobuf32 libgoogle-glog0v6 libgflags2.2 libhdf5-103-1
  libhdf5-hl-100 liblmdb0 libopenblas0-pthread)

say() { printf 'install-caffe: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

case "${1:-}" in
  --packages) printf '%s\n' "${build_packages[@]}"; exit 0 ;;
  --runtime-packages) printf '%s\n' "${runtime_packages[@]}"; exit 0 ;;
  "" | -*) die "usage: docker/install-caffe.sh VENV [--gpu]" ;;
esac
venv=$1
gpu=${2:-}
[ -z "$gpu" ] || [ "$gpu" = --gpu ] || die "unknown option $gpu; the only one is --gpu"

host_python=${PYTHON:-python3}
"$host_python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null ||
  die "Python 3.11 is needed (Debian's Boost.Python is built for it); name one with PYTHON=/path/to/python3.11"

# --- Debian packages ---------------------------------------------------------------------------
packages=("${build_packages[@]}")
header=$("$host_python" -c 'import sysconfig; print(sysconfig.get_path("include") + "/Python.h")')
[ -e "$header" ] || packages+=(python3-dev)
"$host_python" -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ "${#missing[@]}" -gt 0 ]; then
  if [ "$(id -u)" = 0 ]; then
    say "installing Debian packages: ${missing[*]}"
    log=$(mktemp)
    { apt-get update -qq &&
      DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}"
    } >"$log" 2>&1 </dev/null || { tail -n 20 "$log" >&2; die "apt-get failed; the whole log: $log"; }
    rm -f "$log"
  else
    die "these Debian packages are missing; ask an administrator to run
  apt-get install --no-install-recommends ${missing[*]}"
  fi
fi

# --- virtual environment -----------------------------------------------------------------------
[ -x "$venv/bin/python" ] || "$host_python" -m venv "$venv"
python=$(cd "$venv/bin" && pwd)/python
"$python" -m pip install --quiet --disable-pip-version-check \
  setuptools wheel 'numpy>=1.26' 'protobuf>=4.25' scipy scikit-image six lmdb h5py

# --- the wheel, from the cache or built --------------------------------------------------------
cache=${DEEPSZ_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/deepsz-caffe}
key=$({ cat "$(readlink -f "$0")"; uname -m; printf '%s' "$gpu"
  "$python" -c 'import sysconfig; print(sysconfig.get_config_var("LDLIBRARY"))'; } | sha256sum | cut -c1-16)
wheels=$cache/caffe-$key
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9   # a second build of the same recipe waits for the first, then finds its wheel

if ! ls "$wheels"/caffe-*.whl >/dev/null 2>&1; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  say "building Caffe (about three minutes on two cores); log: $cache/build.log"
  {
    "$python" -m pip download --quiet --no-deps --no-binary :all: --no-build-isolation \
      -d "$work" "$sdist"
    (cd "$work" && echo "$sdist_sha256  $(ls brocolli*caffe-3.0.0.tar.gz)" | sha256sum -c -)
    mkdir "$work/src"
    tar -xzf "$work"/brocolli*caffe-3.0.0.tar.gz -C "$work/src" --strip-components=1 --exclude=.git
    src=$work/src
    mkdir -p "$src/examples"
    : >"$src/examples/CMakeLists.txt"   # the sdist leaves examples/ out and CMake wants it
    # numpy 2 and scikit-image removed these names
    sed -i 's/arr\.tostring()/arr.tobytes()/; s/np\.fromstring(/np.frombuffer(/; s/as_grey=/as_gray=/' \
      "$src/python/caffe/io.py"
    options=(-DCPU_ONLY=ON)
    [ -z "$gpu" ] || options=(-DCPU_ONLY=OFF -DUSE_CUDNN=OFF -DUSE_NCCL=OFF)
    # Without the PYTHON_* paths CMake finds Debian's Python instead of the environment's.
    read -r include library < <("$python" -c 'import sysconfig as s
print(s.get_path("include"), s.get_config_var("LIBDIR") + "/" + s.get_config_var("LDLIBRARY"))')
    cmake -Wno-dev -S "$src" -B "$work/build" -DCMAKE_BUILD_TYPE=Release \
      -DCMAKE_INSTALL_PREFIX="$work/prefix" "${options[@]}" -DBLAS=open -DUSE_OPENCV=OFF \
      -DUSE_LEVELDB=OFF -DUSE_LMDB=ON -DUSE_HDF5=ON -DBUILD_docs=OFF -DBUILD_matlab=OFF \
      -Dpython_version=3 -DPYTHON_EXECUTABLE="$python" -DPYTHON_INCLUDE_DIR="$include" \
      -DPYTHON_LIBRARY="$library" -DCMAKE_UNITY_BUILD=ON -DCMAKE_UNITY_BUILD_BATCH_SIZE=16
    cmake --build "$work/build" -j"$(nproc)" --target pycaffe
    cmake --build "$work/build" -j"$(nproc)"
    cmake --install "$work/build" --strip

    # Pack what pip can install: pycaffe with libcaffe beside it, and Caffe's own tools.
    tree=$work/wheel
    mkdir -p "$tree/caffe-1.0.0.dist-info" "$tree/caffe-1.0.0.data/scripts"
    cp -r "$work/prefix/python/caffe" "$tree/caffe"
    rm -rf "$tree/caffe/test" && find "$tree" -name __pycache__ -prune -exec rm -rf {} +
    library_dir=$(dirname "$(find "$work/prefix" -name 'libcaffe.so.1.0.0')")
    cp "$library_dir/libcaffe.so.1.0.0" "$tree/caffe/"
    cp "$src/LICENSE" "$tree/caffe-1.0.0.dist-info/"
    # pycaffe's module is a link, or a copy, of the library under its Python name
    find "$tree/caffe" -name '_caffe.so' -exec patchelf --set-rpath '$ORIGIN' {} \;
    for tool in caffe upgrade_net_proto_text upgrade_net_proto_binary compute_image_mean; do
      cp "$work/prefix/bin/$tool" "$tree/caffe-1.0.0.data/scripts/"
      patchelf --set-rpath '$ORIGIN/../lib/python3.11/site-packages/caffe' \
        "$tree/caffe-1.0.0.data/scripts/$tool"
    done
    cat >"$tree/caffe-1.0.0.dist-info/METADATA" <<'METADATA'
Metadata-Version: 2.1
Name: caffe
Version: 1.0.0
Summary: BVLC Caffe 1.0 with pycaffe, built against Debian 12's libraries
Requires-Dist: numpy
Requires-Dist: protobuf
Requires-Dist: scikit-image
Requires-Dist: scipy
Requires-Dist: six
METADATA
    printf 'Wheel-Version: 1.0\nGenerator: install-caffe.sh\nRoot-Is-Purelib: false\nTag: cp311-cp311-linux_%s\n' \
      "$(uname -m)" >"$tree/caffe-1.0.0.dist-info/WHEEL"
    mkdir "$work/out"
    "$python" -m wheel pack --dest-dir "$work/out" "$tree"
    # Try it before anyone else sees it.
    "$python" -m venv --system-site-packages "$work/try"
    "$work/try/bin/python" -m pip install --quiet --no-deps "$work"/out/caffe-*.whl
    PYTHONPATH=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
      "$work/try/bin/python" -c 'import caffe; print(len(caffe.layer_type_list()), "layer types")'
    "$work/try/bin/caffe" --version
    rm -rf "$cache/new-$key"
    mkdir "$cache/new-$key"
    cp "$work"/out/caffe-*.whl "$cache/new-$key/"
    mv -T "$cache/new-$key" "$wheels"
  } >"$cache/build.log" 2>&1 || { tail -n 30 "$cache/build.log" >&2; die "the build failed; the whole log: $cache/build.log"; }
fi
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall "$wheels"/caffe-*.whl
"$python" -c 'import caffe' || die "Caffe was installed but does not load; see above"
say "Caffe is ready in $venv"
