@echo off
rem Builds the programs for Windows on a Windows desk with Go, into bin\.
rem VERSION=v1.2.3 in the environment sets the version that they print.
setlocal
cd /d "%~dp0"
if not defined VERSION set VERSION=v0.0.0-dev.0
set CGO_ENABLED=0
set GOOS=windows
set GOARCH=amd64
set PKG=github.com/devops-agent/devops-agent/cmd/internal/cli
if not exist bin mkdir bin
for %%P in (devopsAgent:agent devopsWorker:worker devopsController:controller) do (
  for /f "tokens=1,2 delims=:" %%A in ("%%P") do (
    echo build bin\%%A.exe
    go build -buildvcs=false -trimpath -ldflags "-s -w -buildid= -X %PKG%.version=%VERSION%" -o bin\%%A.exe .\cmd\%%B || exit /b 1
  )
)
