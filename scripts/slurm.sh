#!/usr/bin/env bash
# A run over 4 nodes on SLURM:   sbatch scripts/slurm.sh split_mnist --seeds 64
#
# srun starts one process a node, or one a GPU; each finds the others by SLURM's variables.  All see the same folder
# (runs/ and the environment), and process 0 alone writes.  A job that is sent SIGTERM before its time is up saves and
# ends; a process that dies ends the others.  Either way the same command goes on, so the job is put back in the queue.
#SBATCH --job-name=bptoolkit
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
# With GPUs, one process each:
##SBATCH --ntasks-per-node=4
##SBATCH --gpus-per-task=1
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"

if (( ${SLURM_RESTART_COUNT:-0} > 0 )); then # what --again began anew goes on when it is put back
  kept=()
  for argument in "$@"; do [[ $argument == --again ]] || kept+=("$argument"); done
  set -- "${kept[@]}"
fi

srun --kill-on-bad-exit=1 .venv/bin/python scripts/run.py "$@"
code=$?

# 3, 134: another process was lost; 137: this one was killed; 143: SIGTERM, saved.  Anything else repeats itself.
case $code in
  3 | 134 | 137 | 143) (( ${SLURM_RESTART_COUNT:-0} < 5 )) && scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit "$code"
