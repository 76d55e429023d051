@echo off
rem Registers the agent of this directory with what keeps it running, and starts it. Arguments: devopsAgent install --help
setlocal DisableDelayedExpansion
if not exist "%~dp0devopsAgent.exe" goto missing
"%~dp0devopsAgent.exe" --home "%~dp0." install %*
exit /b %errorlevel%

:missing
echo install.bat: no devopsAgent.exe beside it: unpack the whole archive there 1>&2
exit /b 1
