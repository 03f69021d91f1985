#!/bin/bash
#SBATCH --job-name=skaocls
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1     # one torchrun per node, which starts one process per GPU
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --requeue               # a restarted job continues from the last checkpoint

# sbatch slurm_train.sh --data /shared/images --output /shared/classifier
# All nodes must have access to data and output. Only the first process reads and writes checkpoints.
set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
per_node=${SLURM_GPUS_ON_NODE:-1}
export OMP_NUM_THREADS=$((${SLURM_CPUS_PER_TASK:-1} / per_node))

srun torchrun \
    --nnodes "$SLURM_NNODES" \
    --nproc-per-node "$per_node" \
    --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-backend c10d \
    --rdzv-endpoint "$first:29500" \
    "${SCRIPT:-train_torchrun.py}" "$@"
