#!/usr/bin/env bash
# Compiles the products for GPUs into the package: deepsz_caffe/running/native/gpu.cu to
# deepsz_caffe/running/_gpu.so, which needs nothing but the driver.
#   docker/build-gpu.sh                              GPU_ARCHITECTURES="80 90": code for these only
set -euo pipefail
cd "$(dirname "$0")/../deepsz_caffe/running"
PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
options=(-O3 --fmad=false -shared -Xcompiler -fPIC)
# CUDA 11 knows no later host compiler.
! nvcc --version | grep -q 'release 11' || options+=(-ccbin /usr/bin/g++-11)
last=
for architecture in ${GPU_ARCHITECTURES:-60 70 80 90}; do
  nvcc --list-gpu-arch | grep -qx "compute_$architecture" || continue # too old for this nvcc, or too new
  options+=(-gencode "arch=compute_$architecture,code=sm_$architecture")
  last=$architecture
done
# Newer devices compile from the last one's PTX.
options+=(-gencode "arch=compute_$last,code=compute_$last")
nvcc "${options[@]}" -o _gpu.so native/gpu.cu
