#!/bin/bash
# A recipe on one Slurm node or more, one launcher on each.
#   sbatch --nodes 2 slurm.sh fsdp2 pretrain out/run --dataset texts/
# The output folder and HF_HOME must be on a disk that all nodes see.
# A job that is preempted, or ends with its time, saves a checkpoint, is queued again and continues from it.
#SBATCH --job-name=hf-lm
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -u
if [ "$#" -lt 3 ]; then
  echo "usage: sbatch [OPTIONS] slurm.sh LAUNCH_FILE RECIPE OUTPUT_DIR [--OPTION VALUE ...]" >&2
  exit 2
fi
config=$1 recipe=$2 output=$3
shift 3
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=540 # seconds that a step and its checkpoint may take; below --signal's
trap : TERM                               # this script outlives the signal, to queue the job again
srun --kill-on-bad-exit=0 hf-lm run --config_file "$config" --rdzv_backend c10d \
  --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * SLURM_GPUS_ON_NODE))" \
  --main_process_ip "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" \
  --main_process_port "$((20000 + SLURM_JOB_ID % 10000))" \
  "$recipe" --output_dir "$output" --resume_from_checkpoint latest "$@"
code=$?
if [ "$code" -eq 75 ] || [ "$code" -eq 143 ]; then # out of its budget (--max_hours), or ended by SIGTERM
  scontrol show job "$SLURM_JOB_ID" | grep -qE "JobState=RUNNING|PreemptTime=[0-9]" && # and not by scancel
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
