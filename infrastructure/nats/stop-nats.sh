#!/bin/sh
# Stops the server that start-nats.sh started on this data directory, and no other.
set -eu
# shellcheck source-path=SCRIPTDIR
. "$(dirname -- "$0")/settings.sh"

pid=$(cat "$pid_file" 2>/dev/null || true)
if ! ours "$pid"; then
    echo "nats-server does not run"
    exit 0
fi
kill "$pid"
tries=0
while ours "$pid"; do
    tries=$((tries + 1))
    [ $tries -lt 300 ] || fail "process $pid did not end within 30 s"
    sleep 0.1
done
rm -f "$pid_file"
echo "nats-server stopped"
