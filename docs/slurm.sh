#!/bin/bash
# A run on Slurm that goes on by itself after its time limit or a preemption, and fails where it fails.
#
#   sbatch docs/slurm.sh runs/NAME --scale paper                     one run; what follows its name are options of train.py
#   sbatch --array=1-6 docs/slurm.sh runs/sweep sweep.txt --scale smoke
#                                                                    a run for each line of sweep.txt: line 3, such as
#                                                                    `--rl.clip-high 0.3 --seed 8`, makes runs/sweep/3
#
# Once before, on the login node: uv sync, with --extra cuda for GPUs.
#
#SBATCH --job-name=emojimaze
#SBATCH --time=04:00:00
#SBATCH --ntasks=2 --cpus-per-task=1
##SBATCH --ntasks-per-node=8 --gpus-per-node=8
#SBATCH --output=slurm-%j.out --open-mode=append
#SBATCH --requeue --signal=TERM@120
# With GPUs, a task for each: give the line that begins with ## one # less, in place of the one above it.

set -u
run=${1:?which run? sbatch docs/slurm.sh runs/NAME [options of train.py]}
shift
if [ -n "${SLURM_ARRAY_TASK_ID-}" ]; then
    sweep=${1:?which sweep? give a file with the options of a job on each line}
    shift
    own=()
    read -r -a own < <(sed -n "${SLURM_ARRAY_TASK_ID}p" "$sweep")
    if [ "${#own[@]}" -eq 0 ]; then
        echo "$sweep: no line ${SLURM_ARRAY_TASK_ID}; give --array the numbers of its lines" >&2
        exit 2
    fi
    run=$run/$SLURM_ARRAY_TASK_ID
    set -- "${own[@]}" "$@"
fi
if [ -e "$run/config.json" ]; then set -- --resume "$run"; else set -- --run-dir "$run" "$@"; fi

status=0
srun --kill-on-bad-exit=1 uv run --no-sync train.py "$@" || status=$?
if [ "$status" -eq 143 ] && scontrol requeue "$SLURM_JOB_ID"; then
    exit 0 # SIGTERM came and a checkpoint was written: the same job goes on with it
fi
exit "$status"
