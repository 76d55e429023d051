@echo off
rem Stops the agent of this directory, when its builds have ended. Arguments: devopsAgent stop --help
setlocal DisableDelayedExpansion
if not exist "%~dp0devopsAgent.exe" goto missing
"%~dp0devopsAgent.exe" --home "%~dp0." stop %*
exit /b %errorlevel%

:missing
echo stop.bat: no devopsAgent.exe beside it: unpack the whole archive there 1>&2
exit /b 1
