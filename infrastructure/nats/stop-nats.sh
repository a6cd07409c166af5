#!/bin/sh
# Stops the server that start-nats.sh started from this directory, and no other.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
data=${NATS_DATA_DIR:-}
if [ -z "$data" ] && [ -f "$here/.env.nats" ]; then
    data=$(sed -n 's/^NATS_DATA_DIR=//p' "$here/.env.nats" | tail -n 1)
fi
case ${data:=data} in /*) ;; *) data=$here/$data ;; esac

pid=$(cat "$data/nats-server.pid" 2>/dev/null || true)
# A pid file may outlive its server, and its number may be another program's by now.
ours() { ps -ww -p "$1" -o args= 2>/dev/null | grep -qF "$here/nats-server.conf"; }
if [ -z "$pid" ] || ! ours "$pid"; then
    echo "nats-server does not run"
    exit 0
fi
kill "$pid"
tries=0
while ours "$pid"; do
    tries=$((tries + 1))
    if [ $tries -ge 200 ]; then
        echo "stop-nats: process $pid did not end within 20 s" >&2
        exit 1
    fi
    sleep 0.1
done
echo "nats-server stopped"
