#!/usr/bin/env bash
# Builds BVLC Caffe 1.0 with pycaffe for Python 3.11 and installs it into a virtual environment.
#
#   docker/install-caffe.sh VENV [--gpu]              e.g. docker/install-caffe.sh .venv
#                                                     GPU_ARCHITECTURES="80 90": code for these only
#   docker/install-caffe.sh --packages [--gpu]        only names the Debian packages it needs
#   docker/install-caffe.sh --runtime-packages [--gpu]  ... and those that a built Caffe needs
#
# The result is one wheel, kept in ${DEEPSZ_CACHE:-${XDG_CACHE_HOME:-~/.cache}/deepsz-caffe} under a
# name that holds the hash of this file and of the packages it builds with: a second run, or another
# checkout, installs it in seconds. What pip fetches is pinned with its digest, here and in
# requirements.txt beside this file, and checked before anything of it runs. Beyond Debian's packages
# nothing goes into system folders. An interrupted run is safe to repeat: the build works in the
# cache folder, which the next run clears first, and the wheel is renamed into its place when
# complete.
set -euo pipefail

# PyPI's brocolli-caffe 3.0.0 carries BVLC's tree at commit 9b891540 but for two files under src/
# (a protobuf 3.21 fix in io.cpp; an HDF5 branch of net.cpp). Its other versions are another fork.
sdist=brocolli-caffe==3.0.0
sdist_sha256=ad7ba487552f4343df25044a9fa14812a96add48ea2ff993b53bf2dafe8248e2
# lines of requirements.txt: to build with, and what Caffe's Python side needs
fetched=(setuptools wheel packaging numpy protobuf six lmdb h5py)
build_packages=(cmake g++ make libboost-python-dev libboost-system-dev libboost-thread-dev
  libboost-filesystem-dev libprotobuf-dev protobuf-compiler libgoogle-glog-dev libgflags-dev
  libhdf5-dev liblmdb-dev libopenblas-dev patchelf)
# What the built wheel needs to run; docker/Dockerfile installs only these in the final image.
runtime_packages=(libboost-python1.74.0 libboost-thread1.74.0 libboost-filesystem1.74.0
  libprotobuf32 libgoogle-glog0v6 libgflags2.2 libhdf5-103-1 libhdf5-hl-100 liblmdb0
  libopenblas0-pthread libpython3.11)
# With --gpu: CUDA 11.8 from Debian's non-free section, unless another nvcc is there already. Its
# cuDNN is 8.5; Caffe's code is written for cuDNN 7 and older, so it calculates with cuBLAS.
gpu_build_packages=(nvidia-cuda-toolkit)
gpu_runtime_packages=(libcudart11.0 libcublas11 libcurand10)
# Code for 6.0 also runs on 6.1, for 7.0 on 7.5, for 8.0 on 8.6 and 8.9.
read -ra gpu_architectures <<<"${GPU_ARCHITECTURES:-60 70 80 90}"

say() { printf 'install-caffe: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

usage="usage: docker/install-caffe.sh VENV | --packages | --runtime-packages  [--gpu]"
gpu=${2:-}
[ -z "$gpu" ] || [ "$gpu" = --gpu ] || die "$usage"
if [ -n "$gpu" ]; then
  PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
  command -v nvcc >/dev/null || build_packages+=("${gpu_build_packages[@]}")
  runtime_packages+=("${gpu_runtime_packages[@]}")
fi
case "${1:-}" in
  --packages) printf '%s\n' "${build_packages[@]}"; exit 0 ;;
  --runtime-packages) printf '%s\n' "${runtime_packages[@]}"; exit 0 ;;
  "" | -*) die "$usage" ;;
esac
venv=$1

# --- Debian packages ---------------------------------------------------------------------------
command -v dpkg-query >/dev/null || die "this script knows Debian 12's packages only"
host_python=${PYTHON:-python3}
is_python311() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; }
packages=("${build_packages[@]}")
if command -v "$host_python" >/dev/null; then
  is_python311 "$host_python" || die "Python 3.11 is needed (Debian's Boost.Python is built for it), \
and $host_python is another; name one with PYTHON=/path/to/python3.11"
  header=$("$host_python" -c 'import sysconfig; print(sysconfig.get_path("include") + "/Python.h")')
  [ -e "$header" ] || packages+=(python3-dev)
  "$host_python" -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
else
  packages+=(python3 python3-dev python3-venv)
fi
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
# An environment whose making was interrupted has no working pip yet; making it again completes it.
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$host_python" -m venv "$venv"
python=$(cd "$venv/bin" && pwd)/python
is_python311 "$python" || die "the environment $venv is not of Python 3.11; name another folder"
# The marker outlives an interrupted pip, which may take half a package for a whole one.
unfinished=$venv/.install-caffe-unfinished
pip_install=("$python" -m pip install --quiet --disable-pip-version-check)
[ ! -e "$unfinished" ] || pip_install+=(--force-reinstall)
touch "$unfinished"
requirements=$(dirname "$(readlink -f "$0")")/requirements.txt
pins=$(grep -E "^($(IFS='|'; echo "${fetched[*]}"))==" "$requirements")
"${pip_install[@]}" --require-hashes --only-binary :all: -r <(echo "$pins")

# --- the wheel, from the cache or built --------------------------------------------------------
cache=${DEEPSZ_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/deepsz-caffe}
key=$({ cat "$(readlink -f "$0")"; echo "$pins"; uname -m; printf '%s' "$gpu"
  [ -z "$gpu" ] || { printf '%s ' "${gpu_architectures[@]}"; nvcc --version; }
  "$python" -c 'import sysconfig as s; print(s.get_config_vars("LIBDIR", "LDLIBRARY"))'
} | sha256sum | cut -c1-16)
wheels=$cache/caffe-$key
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9   # a second build of the same recipe waits for the first, then finds its wheel

if ! ls "$wheels"/caffe-*.whl >/dev/null 2>&1; then
  work=$cache/work   # the lock is ours: what is in there was left by a run that was killed
  rm -rf "$work"
  mkdir "$work"
  trap 'rm -rf "$work"' EXIT
  say "building Caffe (about three minutes on two cores); log: $cache/build.log"
  # A step that fails ends the build; as a part of `( … ) || …` none would.
  set +e
  (
    set -e
    # pip runs a source package's setup.py to learn its name, but not before its digest is right
    "$python" -m pip download --quiet --require-hashes --no-deps --no-binary :all: \
      --no-build-isolation -d "$work" -r <(echo "$sdist --hash=sha256:$sdist_sha256")
    mkdir "$work/src"
    tar -xzf "$work"/brocolli*caffe-3.0.0.tar.gz -C "$work/src" --strip-components=1 --exclude=.git
    src=$work/src
    mkdir -p "$src/examples"
    : >"$src/examples/CMakeLists.txt"   # the sdist leaves examples/ out and CMake wants it
    # VGG-16's caffemodel is 553 MB; the fix for protobuf 3.21 stops at 512, BVLC's own limit is 2 GB
    sed -i 's/SetTotalBytesLimit(536870912)/SetTotalBytesLimit(kProtoReadBytesLimit)/' \
      "$src/src/caffe/util/io.cpp"
    grep -q 'SetTotalBytesLimit(kProtoReadBytesLimit)' "$src/src/caffe/util/io.cpp"
    # numpy 2 and scikit-image removed these names
    sed -i 's/arr\.tostring()/arr.tobytes()/; s/np\.fromstring(/np.frombuffer(/; s/as_grey=/as_gray=/' \
      "$src/python/caffe/io.py"
    # scikit-image and SciPy (200 MB, half a second) only where an image is read or resized, not in
    # every `import caffe`
    sed -i -E -e '/^(import skimage\.io|from scipy\.ndimage import zoom|from skimage\.transform import resize)$/d' \
      -e 's/^( +)img = skimage\.img_as_float/\1import skimage.io\n&/' \
      -e 's/^( +)resized_std = resize\(/\1from skimage.transform import resize\n&/' \
      -e 's/^( +)resized_im = zoom\(/\1from scipy.ndimage import zoom\n&/' "$src/python/caffe/io.py"
    options=(-DCPU_ONLY=ON)
    if [ -n "$gpu" ]; then
      # those of our architectures that this nvcc knows; newer devices compile from the last one's PTX
      architectures=()
      for architecture in "${gpu_architectures[@]}"; do
        ! nvcc --list-gpu-arch | grep -qx "compute_$architecture" || architectures+=("$architecture")
      done
      options=(-DCPU_ONLY=OFF -DUSE_CUDNN=OFF -DUSE_NCCL=OFF -DCUDA_ARCH_NAME=Manual
        -DCUDA_ARCH_BIN="${architectures[*]}" -DCUDA_ARCH_PTX="${architectures[-1]}")
      # CUDA 11 refuses Debian 12's g++ 12; its package brings g++ 11
      ! nvcc --version | grep -q 'release 11' || options+=(-DCUDA_HOST_COMPILER=/usr/bin/g++-11)
    fi
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
    patchelf --set-rpath '$ORIGIN' "$tree/caffe/_caffe.so"
    # Caffe's Python layers need libpython: Debian's is found anyway, another is named
    python_libraries=$(dirname "$library")
    case $python_libraries in
      /usr/lib/*) patchelf --remove-rpath "$tree/caffe/libcaffe.so.1.0.0" ;;
      *) patchelf --set-rpath "$python_libraries" "$tree/caffe/libcaffe.so.1.0.0" ;;
    esac
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
Requires-Dist: six
Provides-Extra: images
Requires-Dist: scikit-image; extra == 'images'
Requires-Dist: scipy; extra == 'images'
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
  ) >"$cache/build.log" 2>&1
  built=$?
  set -e
  [ "$built" = 0 ] ||
    { tail -n 30 "$cache/build.log" >&2; die "the build failed; the whole log: $cache/build.log"; }
fi
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall "$wheels"/caffe-*.whl
"$python" -c 'import caffe' || die "Caffe was installed but does not load; see above"
rm "$unfinished"
say "Caffe is ready in $venv"
