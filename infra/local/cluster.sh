#!/usr/bin/env bash
# A cluster on this machine, without a container engine: an object store, a Ray head without work of
# its own, two workers, and the sample job, submitted as to any other cluster.
#
#   infra/local/cluster.sh [OPTIONS OF pnp-batch submit]     such as --steps 20 --workers 1:2
#
# Everything listens on loopback alone, and Ray asks for a token that is made here. At the end nothing
# runs any more, and the output lies in OUTPUT (outputs/cluster). KEEP=1 leaves the cluster up until Ctrl-C.
set -euo pipefail
cd "$(dirname "$0")/../.."

OUTPUT=${OUTPUT:-outputs/cluster}
STORE_PORT=${STORE_PORT:-8333} RAY_PORT=${RAY_PORT:-6379} DASHBOARD_PORT=${DASHBOARD_PORT:-8265}
export PATH="$PWD/.venv/bin:$PATH"
there=$(mktemp -d -t pl-XXXXXX) # short: Ray puts sockets below it
running=()

end() {
  trap - EXIT INT TERM
  # Nothing here is worth a farewell, for which Ray takes half a minute.
  for ((n = ${#running[@]} - 1; n >= 0; n--)); do
    while pkill -KILL --session "${running[n]}"; do sleep 0.1; done
  done
  rm -rf "$there"
}
trap end EXIT
trap 'exit 130' INT TERM

start() { # NAME COMMAND...: in a session of its own, so that Ctrl-C reaches this script alone
  setsid "${@:2}" > "$there/$1.log" 2>&1 &
  running+=($!)
  disown # else bash tells of its end
}

until_true() { # WHAT COMMAND...
  for ((n = 0; n < 240; n++)); do
    if "${@:2}" > /dev/null 2>&1; then return; fi
    sleep 0.5
  done
  echo "error: no $1 within two minutes" >&2
  echo "hint: $(tail -n 3 "$there"/*.log)" >&2
  exit 1
}

umask 077
export AWS_ACCESS_KEY_ID=local AWS_REGION=us-east-1 AWS_ENDPOINT_URL=http://127.0.0.1:$STORE_PORT
AWS_SECRET_ACCESS_KEY=$(head -c 20 /dev/urandom | od -An -tx1 | tr -d ' \n')
export AWS_SECRET_ACCESS_KEY
cat > "$there/identities.json" << END
{"identities": [{"name": "local", "actions": ["Admin"],
  "credentials": [{"accessKey": "$AWS_ACCESS_KEY_ID", "secretKey": "$AWS_SECRET_ACCESS_KEY"}]}]}
END
mkdir "$there/store"
start store weed server -s3 -ip=127.0.0.1 -ip.bind=127.0.0.1 -dir="$there/store" -s3.port="$STORE_PORT" \
  -s3.config="$there/identities.json" -s3.port.iceberg=0 -s3.port.lance=0 -master.telemetry=false \
  -master.electionTimeout=1s -volume.max=50 -master.volumeSizeLimitMB=64
bucket="import s3fs; s3fs.S3FileSystem().mkdir('pnp-batch') if not s3fs.S3FileSystem().exists('pnp-batch') else None"
until_true "object store" python -c "$bucket"

head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$there/token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$there/token" RAY_USAGE_STATS_ENABLED=0
ray=(ray start --block --min-worker-port 0 --max-worker-port 0 --object-store-memory 268435456)
start head "${ray[@]}" --head --num-cpus 0 --node-ip-address 127.0.0.1 --port "$RAY_PORT" \
  --dashboard-port "$DASHBOARD_PORT" --dashboard-agent-listen-port $((DASHBOARD_PORT + 1)) --temp-dir "$there/ray"
until_true "Ray head" ray status --address "127.0.0.1:$RAY_PORT"
for host in 2 3; do
  # Ray gives a node up after 30 seconds, which are too few on a busy machine.
  start "worker-$host" bash -c 'until "$@"; do sleep 1; done' \
    bash "${ray[@]}" --num-cpus 3 --node-ip-address "127.0.0.$host" \
    --dashboard-agent-listen-port $((DASHBOARD_PORT + host)) --address "127.0.0.1:$RAY_PORT"
done
for host in 2 3; do
  until_true "worker $host" grep "Ray runtime started" "$there/worker-$host.log"
done
dashboard=http://127.0.0.1:$DASHBOARD_PORT
until_true "dashboard" pnp-batch jobs list --address "$dashboard"
echo "object store: $AWS_ENDPOINT_URL (key $AWS_ACCESS_KEY_ID, secret $AWS_SECRET_ACCESS_KEY)" >&2
echo "dashboard and jobs: $dashboard (token in $RAY_AUTH_TOKEN_PATH)" >&2

pnp-batch submit manifests/sample.parquet --output s3://pnp-batch/sample --workers 2 --address "$dashboard" "$@"
python -c "import s3fs, sys; s3fs.S3FileSystem().get('pnp-batch/sample', sys.argv[1], recursive=True)" "$OUTPUT"
echo "output: $OUTPUT"
if [ -n "${KEEP:-}" ]; then
  echo "Ctrl-C ends the cluster" >&2
  sleep infinity
fi
