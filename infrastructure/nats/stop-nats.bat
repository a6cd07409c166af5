@echo off
rem Stops the server that start-nats.bat started from this directory, and no other.
powershell -NoProfile -ExecutionPolicy Bypass -File "%~dp0stop-nats.ps1" %*
