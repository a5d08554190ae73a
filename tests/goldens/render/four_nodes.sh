#!/usr/bin/env bash
# Made by: rwkvctl pretrain --render ...
#
# Submit:  sbatch FILE      (options given there win: sbatch --time=1-0 --account=LAB FILE)
# Follow:  tail -F NAME-ID.log, with the job's name and number
# Stop:    scancel ID       (with a checkpoint first: scancel --batch --signal=TERM ID, which requeues it)
#
# It continues the run NAME if there is one. Passwords and keys (MLFLOW_TRACKING_PASSWORD,
# AWS_SECRET_ACCESS_KEY ...) come from the environment of sbatch; none is written down here.
#SBATCH --job-name=NAME
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=73
#SBATCH --gpus-per-node=8
#SBATCH --mem=132G
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@120

set -u -o pipefail
ENVIRONMENT=/shared/rwkvctl
ENVIRONMENT="${RWKVCTL_ENVIRONMENT:-$ENVIRONMENT}"
SHARED=/mnt/rwkvctl/runs
JOB=pretrain
NODES=4
CPUS=73
GPUS=8
RETRIES=3
KEEP_ALIVE=''
read -r -d '' SPEC <<'RWKVCTL_SPEC'
SPEC
RWKVCTL_SPEC

BODY
