#!/usr/bin/env bash
# A job of four machines with eight GPUs each under Slurm: sbatch recipes/launch/slurm.sh RECIPE [key=value ...]
# The run directory must be on a file system that all machines see.
#SBATCH --job-name=posttrain
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
set -euo pipefail

# A pre-empted or requeued job goes on where its newest complete checkpoint left it.
output=runs/$SLURM_JOB_ID
resume=
if [[ -e $output/recipe.yaml ]]; then resume=--resume; fi

# SIGTERM reaches the ranks through their launcher, which kills them after so many seconds: time for the step to end
# and for its checkpoint.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240
address=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export address output resume

# shellcheck disable=SC2016  # each machine has its own SLURM_NODEID
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --config_file recipes/launch/zero3_4nodes.yaml \
  --machine_rank "$SLURM_NODEID" --main_process_ip "$address" \
  -m posttrain train "$@" --output "$output" $resume' launch "$@"
