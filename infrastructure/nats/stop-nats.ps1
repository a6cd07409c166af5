# Stops the server that start-nats.ps1 started on this data directory, and no other. Windows has no
# gentle signal for it; sync_interval has put every acknowledged event on the disk.
. (Join-Path $PSScriptRoot 'settings.ps1')
$running = OurServer
if (-not $running) { Write-Output 'nats-server does not run'; exit 0 }
Stop-Process -Id $running.Id
if (-not $running.WaitForExit(30000)) { Fail "process $($running.Id) did not end within 30 s" }
Remove-Item -LiteralPath $pidFile -ErrorAction SilentlyContinue
Write-Output 'nats-server stopped'
