#!/usr/bin/env bash
# Made by: rwkvctl pretrain imagenet --variant b --data /shared/data/imagenet --nodes 4 --gpus-per-node 8 --set storage=/shared/runs --set tracking.uri=https://mlflow.example.org --render slurm
#
# Submit:  sbatch FILE      (options given there win: sbatch --time=1-0 --account=LAB FILE)
# Follow:  tail -F NAME-ID.log, with the job's name and number
# Stop:    scancel ID       (with a checkpoint first: scancel --batch --signal=TERM ID, which requeues it)
#
# It continues the run pretrain-imagenet-8cb0f17c if there is one. Passwords and keys (MLFLOW_TRACKING_PASSWORD,
# AWS_SECRET_ACCESS_KEY ...) come from the environment of sbatch; none is written down here.
#SBATCH --job-name=pretrain-imagenet-8cb0f17c
#SBATCH --partition=team-a
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
SHARED=/shared/runs
JOB=pretrain
NODES=4
CPUS=73
GPUS=8
RETRIES=3
KEEP_ALIVE=''
read -r -d '' SPEC <<'RWKVCTL_SPEC'
job: pretrain
name: pretrain-imagenet-8cb0f17c
seed: 42
storage: /shared/runs
cluster:
  launcher: ray
  address: auto
  workers: 32
  nodes: 4
  gpus_per_node: 8
  cpus_per_worker: 1
  max_failures: 3
tracking:
  uri: https://mlflow.example.org
  experiment: rwkvctl
  parent: null
  register_as: null
data:
  dataset: imagenet
  path: /shared/data/imagenet
  split: null
  image_size: 224
  workers: 8
optimizer:
  name: adamw
  lr: 0.003
  lr_reference_batch: 1024
  min_lr: 5.0e-07
  weight_decay: 0.05
  schedule: cosine
  update: step
  poly_power: 0.9
  warmup_epochs: 20
  warmup_lr: 5.0e-07
  clip_grad: 5.0
  layer_decay: null
train:
  epochs: 300
  batch_size: 1024
  micro_batch: null
  batch_norm: auto
  precision: auto
  deterministic: false
  activation_checkpointing: false
  on_nan: stop
  compile: false
  tail: drop
  epoch_steps: null
  checkpoint_steps: 1000
  validate_every: 1
  patience: null
  log_steps: 10
  profile_steps: 0
ema_decay: 0.9998
ema_warmup: false
model:
  name: rwkv_unet_enc_b
  drop_path: null
augment:
  crop_scale:
  - 0.08
  - 1.0
  crop_ratio:
  - 0.75
  - 1.3333333333333333
  horizontal_flip: 0.5
  color_jitter: 0.4
  rand_augment: rand-m9-mstd0.5-inc1
  interpolation: random
label_smoothing: 0.1
RWKVCTL_SPEC

# From here on the script is the same for every job. The batch script starts one task per node. The task of the first
# node starts Ray's head there, waits for the other nodes and runs the job; the others join, and start their part of Ray
# again if it ends. When the job ends, its exit code is that of every task, and of the batch script.

folder="$SHARED/.slurm/$SLURM_JOB_ID" # every node sees it
patience=600                           # seconds for all nodes to join, and without a sign of the head

say() { echo "[$(date +%H:%M:%S)] $*" >&2; }

write() { # write FILE TEXT: whole or not at all
    printf '%s\n' "$2" >"$1.tmp" && mv "$1.tmp" "$1"
}

batch() {
    umask 077
    mkdir -p "$folder" || { say "error: $folder: cannot be written; every node has to see it"; exit 2; }
    rm -f "$folder"/{head,alive,stop,exit-code} # of the time before, if the job was requeued
    od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$folder/token"
    trap 'rm -f "$folder/token"' EXIT
    printf '%s\n' "$SPEC" >"$folder/spec.yaml"
    cp "$0" "$folder/job.sh"

    stopped=''
    trap 'stopped=1; say "told to end: writing a checkpoint"; touch "$folder/stop"' TERM
    export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # which srun does not take over by itself
    srun --ntasks-per-node=1 --kill-on-bad-exit=0 ${KEEP_ALIVE:+"$KEEP_ALIVE"} bash "$folder/job.sh" task &
    step=$!
    while :; do # a signal ends only the waiting
        wait "$step"
        code=$?
        kill -0 "$step" 2>/dev/null || break
    done
    [ -s "$folder/exit-code" ] && code=$(cat "$folder/exit-code")

    case "$stopped$code" in
    1130 | 1143 | 13) # it was told to end, and has
        rm -f "$folder/tries"
        requeue "its time was over"
        ;;
    *75) try_again ;;
    esac
    exit "$code"
}

try_again() {
    tries=$(($(cat "$folder/tries" 2>/dev/null || echo 0) + 1))
    write "$folder/tries" "$tries"
    if [ "$tries" -le "$RETRIES" ]; then
        requeue "try $tries of $RETRIES after a failure that may pass"
    else
        say "exit code 75 for the ${tries}th time in a row: given up"
    fi
}

requeue() {
    state=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p' | head -n 1)
    if [ "$state" != RUNNING ]; then # cancelled by somebody, or preempted, in which case Slurm requeues it itself
        say "not requeued: the job is ${state:-gone}"
    elif scontrol requeue "$SLURM_JOB_ID"; then
        say "requeued: $1"
    else
        say "cannot be requeued; to continue, submit the same file again"
    fi
}

task() {
    export PATH="$ENVIRONMENT/bin:$PATH"
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$folder/token" RAY_USAGE_STATS_ENABLED=0
    command -v ray >/dev/null || { say "error: no ray in $ENVIRONMENT/bin: RWKVCTL_ENVIRONMENT=FOLDER sbatch ..."; exit 2; }
    ports=$((10000 + SLURM_JOB_ID % 110 * 200)) # 200 for each job: two jobs can share a node
    find_address
    if [ "$SLURM_NODEID" -eq 0 ]; then run_head; else run_worker; fi
}

find_address() { # the one that the other nodes reach this one by, and its interface; a name may lead to 127.0.1.1
    mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    address=127.0.0.1
    if [ "${#hosts[@]}" -gt 1 ]; then
        other="${hosts[0]}"
        if [ "$SLURM_NODEID" -eq 0 ]; then other="${hosts[1]}"; fi
        other=$(getent ahostsv4 "$other" | awk 'NR == 1 { print $1 }')
        read -r interface address < <(ip -o -4 route get "$other" | sed -n 's/.* dev \([^ ]*\).* src \([^ ]*\).*/\1 \2/p')
        export GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-$interface}" NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-$interface}"
    fi
}

start_ray() { # start_ray OPTION ...: in the background
    ray start "$@" --block --node-ip-address="$address" --num-cpus="$CPUS" --num-gpus="$GPUS" \
        --object-store-memory=1000000000 --node-manager-port=$((ports + 3)) --object-manager-port=$((ports + 4)) \
        --dashboard-agent-listen-port=$((ports + 5)) --dashboard-agent-grpc-port=$((ports + 6)) \
        --runtime-env-agent-port=$((ports + 7)) --metrics-export-port=$((ports + 8)) \
        --min-worker-port=$((ports + 20)) --max-worker-port=$((ports + 199)) >"$folder/ray-$SLURM_NODEID.log" 2>&1 &
    ray=$!
}

stop_ray() {
    kill -TERM "$ray" 2>/dev/null
    for _ in {1..30}; do kill -0 "$ray" 2>/dev/null || return; sleep 1; done
    kill -KILL "$ray" 2>/dev/null
}

run_head() {
    export RAY_ADDRESS="$address:$ports" # for all that Ray starts: another cluster may have a part on this node
    start_ray --head --port="$ports" --dashboard-host=127.0.0.1 --dashboard-port=$((ports + 1)) \
        --ray-client-server-port=$((ports + 2)) --temp-dir="${TMPDIR:-/tmp}/ray-$SLURM_JOB_ID"
    write "$folder/head" "$RAY_ADDRESS"
    beats=0
    attend python -P -m rwkvctl.launch.await_nodes "$NODES" "$SLURM_JOB_NUM_NODES" "$patience"
    if [ "$code" -eq 0 ]; then
        attend python -P -m "rwkv_jobs.$JOB" --resume "$folder/spec.yaml"
    fi
    write "$folder/exit-code" "$code"
    stop_ray
    exit "$code"
}

attend() { # attend COMMAND ...: to its end, or until the job is told to end or Ray is gone; sets `code`
    "$@" &
    child=$!
    told=''
    while kill -0 "$child" 2>/dev/null; do
        write "$folder/alive" $((beats += 1))
        if [ -z "$told" ] && [ -e "$folder/stop" ]; then told=stop; kill -TERM "$child"; fi
        if [ -z "$told" ] && ! kill -0 "$ray" 2>/dev/null; then told=lost; kill -TERM "$child"; fi
        sleep 1
    done
    wait "$child"
    code=$?
    if [ "$told" = lost ] && [ "$code" -ne 0 ]; then
        code=75
        say "Ray has ended on the head; its last lines:"
        tail -n 5 "$folder/ray-0.log" >&2
    fi
}

run_worker() {
    ray='' beat='' silent=0
    until [ -s "$folder/exit-code" ]; do
        if [ -s "$folder/head" ] && ! kill -0 "$ray" 2>/dev/null; then
            [ -z "$ray" ] || say "node $SLURM_NODEID: Ray has ended here, after a partition perhaps: started again"
            RAY_ADDRESS=$(cat "$folder/head")
            export RAY_ADDRESS
            start_ray --address="$RAY_ADDRESS"
        fi
        now=$(cat "$folder/alive" 2>/dev/null)
        if [ "$now" = "$beat" ]; then silent=$((silent + 1)); else silent=0 beat="$now"; fi
        [ "$silent" -lt "$patience" ] || { say "node $SLURM_NODEID: no sign of the head for $patience s"; stop_ray; exit 75; }
        sleep 1
    done
    stop_ray
    exit "$(cat "$folder/exit-code")"
}

"${1:-batch}"
