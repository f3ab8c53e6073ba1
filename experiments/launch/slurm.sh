#!/usr/bin/env bash
#SBATCH --job-name=jaxunlearn
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=01:00:00
# Run a script of experiments/ on GPUs of a Slurm cluster, as one run of several processes, from the repository's folder:
#
#   sbatch experiments/launch/slurm.sh experiments/quickstart.py --seeds 8
#
# JAX takes one process for each GPU on Slurm and picks that of its number on the node, so every task must see all GPUs of its
# node: no --gpus-per-task, no --gpu-bind. Options of sbatch go before the script, e.g. sbatch --nodes=1 experiments/launch/...
#
# PYTHON  interpreter on the nodes that has jaxunlearn[experiments,cuda]; default python3
set -euo pipefail

if [[ $# -lt 1 || $1 != *.py ]]; then
  echo "slurm.sh: expected a script and its flags, e.g. experiments/quickstart.py --seeds 8; got: ${*:-nothing}" >&2
  exit 2
fi
if ! command -v srun >/dev/null; then
  echo "slurm.sh: srun was not found; submit this with sbatch on a Slurm cluster" >&2
  exit 2
fi

script=$1
shift
exec srun --kill-on-bad-exit=1 "${PYTHON:-python3}" "$script" --distributed --mesh "$@"
