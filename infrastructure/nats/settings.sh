# Read by start-nats.sh and stop-nats.sh: where things are, and which server is ours.
# shellcheck shell=sh
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)

fail() {
    echo "$(basename -- "$0" .sh): $*" >&2
    exit 1
}

# Lines of .env.nats are data and never run. What the environment says wins over them.
if [ -f "$here/.env.nats" ]; then
    cr=$(printf '\r')
    count=0
    while IFS= read -r line || [ -n "$line" ]; do
        count=$((count + 1))
        line=${line%"$cr"}
        name=${line%%=*}
        value=${line#*=}
        case $line in
        NATS_*=*)
            case $name in *[!A-Z_]*) fail ".env.nats, line $count: $name is no name" ;; esac
            case $value in \"*\" | \'*\') value=${value#?} value=${value%?} ;; esac
            eval "known=\${$name:+yes}"
            [ -n "$known" ] || export "$name=$value"
            ;;
        '' | '#'*) ;;
        *) fail ".env.nats, line $count: not NATS_NAME=value" ;;
        esac
    done <"$here/.env.nats"
fi

real() { (CDPATH='' cd -- "$1" && pwd -P); }
in_here() { case $1 in /*) echo "$1" ;; *) echo "$here/$1" ;; esac; }
data=$(in_here "${NATS_DATA_DIR:-data}")
[ ! -d "$data" ] || data=$(real "$data")
pid_file=$data/nats-server.pid

command_of() {
    if [ -e /proc/self/cmdline ]; then
        { tr '\0' ' ' <"/proc/$1/cmdline"; } 2>/dev/null
    else
        ps -ww -p "$1" -o args=
    fi
}

# Whether process $1 is the server on our data. A pid file outlives its server, and the number in
# it may be another program's by now; so the server is started with its pid file as an argument.
ours() {
    case $1 in '' | *[!0-9]*) return 1 ;; esac
    case "$(command_of "$1") " in *" -P $pid_file "*) ;; *) return 1 ;; esac
}
