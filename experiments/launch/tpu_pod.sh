#!/usr/bin/env bash
# Run a script of experiments/ on every worker of a Cloud TPU slice, as one run of several processes.
#
#   TPU_NAME=my-slice ZONE=us-east5-b PROJECT=my-project FOLDER=jaxunlearn \
#     experiments/launch/tpu_pod.sh experiments/quickstart.py --seeds 8
#
# TPU_NAME, ZONE, PROJECT  the slice
# FOLDER                   checkout of this repository on every worker, relative to the home folder
# PYTHON                   interpreter on the workers that has jaxunlearn[experiments,tpu]; default python3
set -euo pipefail

for name in TPU_NAME ZONE PROJECT FOLDER; do
  if [[ -z "${!name:-}" ]]; then
    echo "tpu_pod.sh: set the environment variable $name (see the head of this file)" >&2
    exit 2
  fi
done
if [[ $# -lt 1 || $1 != *.py ]]; then
  echo "tpu_pod.sh: expected a script and its flags, e.g. experiments/quickstart.py --seeds 8; got: ${*:-nothing}" >&2
  exit 2
fi
if ! command -v gcloud >/dev/null; then
  echo "tpu_pod.sh: gcloud was not found; install the Google Cloud CLI and log in" >&2
  exit 2
fi

script=$1
shift
printf -v command '%q ' cd "$FOLDER"
printf -v run '%q ' "${PYTHON:-python3}" "$script" --distributed --mesh "$@"
exec gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --project="$PROJECT" --worker=all --command="$command&& exec $run"
