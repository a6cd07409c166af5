# Stops the server that start-nats.ps1 started from this directory, and no other.
$ErrorActionPreference = 'Stop'
$data = $env:NATS_DATA_DIR
$file = Join-Path $PSScriptRoot '.env.nats'
if (-not $data -and (Test-Path $file)) {
    $data = (Select-String -Path $file -Pattern '^NATS_DATA_DIR=(.*)$' | Select-Object -Last 1).Matches.Groups[1].Value
}
if (-not $data) { $data = 'data' }
if (-not [IO.Path]::IsPathRooted($data)) { $data = Join-Path $PSScriptRoot $data }
$pidFile = Join-Path $data 'nats-server.pid'
$running = $null
if (Test-Path $pidFile) { $running = Get-Process -Id (Get-Content $pidFile) -ErrorAction SilentlyContinue }
# A pid file may outlive its server, and its number may be another program's by now.
if (-not $running -or $running.ProcessName -ne 'nats-server') { Write-Output 'nats-server does not run'; exit 0 }
Stop-Process -Id $running.Id
$running.WaitForExit()
Remove-Item $pidFile -ErrorAction SilentlyContinue
Write-Output 'nats-server stopped'
