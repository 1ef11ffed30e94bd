#!/usr/bin/env bash
# A search on Slurm: one Ray head and a worker on each further node, for one job of jobs/.
# Needs: cedm-ray on all nodes (an environment on shared storage that is active where you type), and shared storage.
# Command, in the project's folder:  sbatch jobs/cluster/slurm.sh jobs/cifar10.sh
#   with IMAGES=... STUDY=... before it, as the page of the job says
# Cost: of the job, in its own header. Change nodes and GPUs below, or on the command line: sbatch --nodes=4 ...
# Slurm sends SIGTERM three minutes before the time is over, so the search ends by itself; the same command goes on.
#SBATCH --job-name=cedm-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --exclusive
#SBATCH --time=48:00:00
#SBATCH --signal=B:TERM@180
#SBATCH --output=cedm-ray-%j.log
set -euo pipefail

job=${1:?name a page of jobs/, such as jobs/cifar10.sh}
port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs may share a node's network
# The whole list is read: a pipe that closes after its first line can end scontrol, and with it this script (pipefail).
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts%%$'\n'*}
umask 077
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$PWD/.ray-token-$SLURM_JOB_ID
export RAY_TMPDIR=/tmp/ray-$SLURM_JOB_ID
python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$RAY_AUTH_TOKEN_PATH"

# Each step ends with the batch script, and with it whatever Ray has started on its node.
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"; kill $(jobs -p) 2>/dev/null || true' EXIT
srun --nodes=1 --ntasks=1 --nodelist="$head" --exact \
  ray start --head --block --port="$port" --include-dashboard=false \
  --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$SLURM_GPUS_PER_NODE" --temp-dir="$RAY_TMPDIR" &
until python -c "import socket, sys; socket.create_connection((sys.argv[1], $port), 1)" "$head" 2> /dev/null; do
  sleep 2
done
workers=$((SLURM_JOB_NUM_NODES - 1))
if [ "$workers" -gt 0 ]; then
  srun --nodes="$workers" --ntasks="$workers" --exclude="$head" --exact \
    ray start --block --address="$head:$port" \
    --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$SLURM_GPUS_PER_NODE" &
fi

# In the background and waited for, so that Slurm's signal reaches the shell at once, which hands it on.
RAY_ADDRESS=$head:$port bash "$job" &
search=$!
trap 'kill -TERM "$search"' TERM
code=0
wait "$search" || code=$?
# A signal ends the wait and not the search.
while kill -0 "$search" 2> /dev/null; do
  wait "$search" || code=$?
done
exit "$code"
