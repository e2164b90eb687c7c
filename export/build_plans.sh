#!/usr/bin/env bash
# Build the TensorRT plans that tensorrt/ still lacks: inside the image that serves them, on the GPU that serves them.
#
#   docker run --rm --gpus all -v "$PWD":/gpu nvcr.io/nvidia/tritonserver:26.11-py3 /gpu/build.sh
#
# A plan is good for one TensorRT and one kind of GPU: delete model.plan and build again after a change of either.
set -euo pipefail
cd "$(dirname "$0")/tensorrt/sentiment"
trtexec=${TRTEXEC:-/usr/src/tensorrt/bin/trtexec}

if [[ ! -x "$trtexec" ]]; then
  echo "error: there is no trtexec at $trtexec; set TRTEXEC, or take the image nvcr.io/nvidia/tensorrt of the same month" >&2
  exit 2
fi
for version in [0-9]*/; do
  if [[ -e "${version}model.plan" ]]; then
    echo "${version}model.plan is there"
    continue
  fi
  mapfile -t arguments <"${version}trtexec.args"
  "$trtexec" --onnx="${version}model.onnx" --saveEngine="${version}.model.plan" "${arguments[@]}"
  {
    nvidia-smi -L || true
    sha256sum "${version}model.onnx"
  } >"${version}model.plan.txt"
  sync "${version}.model.plan"
  mv "${version}.model.plan" "${version}model.plan"
  echo "${version}model.plan is built"
done
