@echo off
rem Starts the server of nats-server.conf in the background.
powershell -NoProfile -ExecutionPolicy Bypass -File "%~dp0start-nats.ps1" %*
exit /b %errorlevel%
