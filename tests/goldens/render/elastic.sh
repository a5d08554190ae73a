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
#SBATCH --partition=team-a
#SBATCH --nodes=2-4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=5
#SBATCH --mem=20G
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --no-kill

set -u -o pipefail
ENVIRONMENT=/shared/rwkvctl
ENVIRONMENT="${RWKVCTL_ENVIRONMENT:-$ENVIRONMENT}"
SHARED=/lab/home/runs
JOB=finetune
NODES=2
CPUS=5
GPUS=0
RETRIES=3
KEEP_ALIVE=--no-kill
read -r -d '' SPEC <<'RWKVCTL_SPEC'
SPEC
RWKVCTL_SPEC

BODY
