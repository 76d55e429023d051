@echo off
rem Starts the agent of this directory.
setlocal DisableDelayedExpansion
if not exist "%~dp0devopsAgent.exe" goto missing
"%~dp0devopsAgent.exe" --home "%~dp0." start %*
exit /b %errorlevel%

:missing
echo start.bat: no devopsAgent.exe beside it: unpack the whole archive there 1>&2
exit /b 1
