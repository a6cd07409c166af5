@echo off
rem Stops the server that start-nats.bat started on this data directory, and no other.
powershell -NoProfile -ExecutionPolicy Bypass -File "%~dp0stop-nats.ps1" %*
exit /b %errorlevel%
