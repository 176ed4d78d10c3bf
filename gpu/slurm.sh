#!/usr/bin/env bash
# A run on two machines with eight GPUs each. Submit it once: sbatch gpu/slurm.sh
# Two minutes before the time limit SLURM sends SIGUSR1; the run saves, goes back into the queue, and goes on from there.
#SBATCH --job-name=sjepa
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out

set -euo pipefail
source .venv/bin/activate
exec srun --kill-on-bad-exit=1 trainsjepa -c gpu/configs/train_twophase.yaml checkpoint.resume=true checkpoint.ckpt_step=1000 \
  train.batch_size=12 train.grad_accum=1  # 16 × 12 = 192 clips per update
