@echo off
rem Stops the agent of this directory and takes it from its keeper. Arguments: devopsAgent uninstall --help
setlocal DisableDelayedExpansion
if not exist "%~dp0devopsAgent.exe" goto missing
"%~dp0devopsAgent.exe" --home "%~dp0." uninstall %*
exit /b %errorlevel%

:missing
echo uninstall.bat: no devopsAgent.exe beside it: unpack the whole archive there 1>&2
exit /b 1
