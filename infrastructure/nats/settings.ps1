# Read by start-nats.ps1 and stop-nats.ps1: where things are, and which server is ours.
$ErrorActionPreference = 'Stop'
function Fail($text) { [Console]::Error.WriteLine("nats: $text"); exit 1 }

# Lines of .env.nats are data and never run. What the environment says wins over them.
$settings = @{}
$file = Join-Path $PSScriptRoot '.env.nats'
if (Test-Path -LiteralPath $file) {
    $count = 0
    foreach ($line in Get-Content -LiteralPath $file -Encoding UTF8) {
        $count += 1
        if ($line -cmatch '^(NATS_[A-Z_]+)=(.*)$') {
            $settings[$Matches[1]] = $Matches[2] -replace '^(["''])(.*)\1$', '$2'
        } elseif ($line -and -not $line.StartsWith('#')) { Fail ".env.nats, line ${count}: not NATS_NAME=value" }
    }
}
function Setting($name, $default) {
    foreach ($value in [Environment]::GetEnvironmentVariable($name), $settings[$name]) { if ($value) { return $value } }
    return $default
}
function InHere($path) { if ([IO.Path]::IsPathRooted($path)) { $path } else { Join-Path $PSScriptRoot $path } }
$data = [IO.Path]::GetFullPath((InHere (Setting 'NATS_DATA_DIR' 'data'))).TrimEnd('\')
$pidFile = Join-Path $data 'nats-server.pid'

# The server on our data, or nothing. A pid file outlives its server, and the number in it may be
# another program's by now; so the server is started with its pid file as an argument.
function OurServer {
    if (-not (Test-Path -LiteralPath $pidFile)) { return }
    $number = (Get-Content -LiteralPath $pidFile -Raw).Trim()
    if ($number -notmatch '^\d+$') { return }
    $found = Get-CimInstance Win32_Process -Filter "ProcessId = $number"
    if ($found -and $found.CommandLine -and $found.CommandLine.Contains("-P `"$pidFile`"")) { Get-Process -Id $number }
}
