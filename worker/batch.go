package worker

import (
	"fmt"
	"strings"
)

// batchHidden are beginnings of variable names that a batch file does not get (protocol §6.7).
var batchHidden = [...]string{"variables.", "settings.", "envs.", "ci.", "job.", "jobs.", "steps.", "matrix."}

// batchName reports whether a batch file gets a variable.
func batchName(name, value string) bool {
	for _, prefix := range batchHidden {
		if strings.HasPrefix(name, prefix) {
			return false
		}
	}
	return name != "" && !strings.ContainsAny(name, "=%&<>|\"^\r\n \t()!\x00") && !strings.ContainsAny(value, "\r\n\x00")
}

// batchValue escapes a value for "set NAME=value" in a batch file, outside of quotes.
func batchValue(s string) string {
	return strings.NewReplacer("^", "^^", "&", "^&", "<", "^<", ">", "^>", "|", "^|", `"`, `^"`, "(", "^(", ")", "^)", "%", "%%").Replace(s)
}

// codePage is the console's code page for a charsetType, 0 for the system's own.
func codePage(charset string) int {
	switch charset {
	case "UTF_8":
		return 65001
	case "GBK":
		return 936
	}
	return 0
}

// batchFile writes the one file that cmd.exe runs: preparation, the user's script, the subroutines (protocol §6.7).
func batchFile(s step) string {
	var b strings.Builder
	b.WriteString("@echo off\n")
	if page := codePage(s.charset); page != 0 {
		fmt.Fprintf(&b, "chcp %d>nul\n", page)
	}
	fmt.Fprintf(&b, "echo init>%s\n", batchPath(s.flag))
	fmt.Fprintf(&b, "set WORKSPACE=%s\n", batchValue(s.workspace))
	fmt.Fprintf(&b, "set DEVOPS_BUILD_SCRIPT_FILE=%s\n", batchValue(s.wrapper))
	b.WriteString("call :devopsVariables\n")
	fmt.Fprintf(&b, "echo script>>%s\n", batchPath(s.flag))
	b.WriteString(strings.TrimRight(s.script, "\n") + "\n")
	b.WriteString("exit\n\n:devopsVariables\n")
	for _, name := range sortedKeys(s.variables) {
		if value := s.variables[name]; batchName(name, value) {
			fmt.Fprintf(&b, "set %s=%s\n", name, batchValue(value))
		}
	}
	for _, env := range s.envs {
		for _, name := range sortedKeys(env.vars) {
			if batchName(name, env.vars[name]) {
				fmt.Fprintf(&b, "set %s=%s\n", name, batchValue(env.vars[name]))
			}
		}
		if env.path != "" {
			fmt.Fprintf(&b, "set PATH=%s;%%PATH%%\n", batchValue(env.path))
		}
	}
	fmt.Fprintf(&b, `goto :eof

:setEnv
>>%s echo(%%~1=%%~2
set %%~1=%%~2
goto :eof

:setGateValue
>>%s echo(%%~1=%%~2
goto :eof
`, batchPath(s.result), batchPath(s.gate))
	return strings.ReplaceAll(b.String(), "\n", "\r\n")
}

// batchPath quotes a path; Windows allows no quote in one.
func batchPath(path string) string { return `"` + strings.ReplaceAll(path, "%", "%%") + `"` }

// powerShellWrapper writes the script that prepares the environment and runs the user's.
func powerShellWrapper(s step) string {
	var b strings.Builder
	b.WriteString("\ufeff[Console]::OutputEncoding = [Text.Encoding]::UTF8\n")
	set := func(name, value string) {
		fmt.Fprintf(&b, "[Environment]::SetEnvironmentVariable(%s, %s, 'Process')\n", powerQuote(name), powerQuote(value))
	}
	set("WORKSPACE", s.workspace)
	set("DEVOPS_BUILD_SCRIPT_FILE", s.wrapper)
	for _, name := range sortedKeys(s.variables) {
		if batchName(name, s.variables[name]) {
			set(name, s.variables[name])
		}
	}
	for _, env := range s.envs {
		for _, name := range sortedKeys(env.vars) {
			if batchName(name, env.vars[name]) {
				set(name, env.vars[name])
			}
		}
		if env.path != "" {
			fmt.Fprintf(&b, "$env:PATH = %s + ';' + $env:PATH\n", powerQuote(env.path))
		}
	}
	fmt.Fprintf(&b, `function setEnv([string]$name, [string]$value) {
	if ($name -cnotmatch '^[a-zA-Z_][a-zA-Z0-9_]*$') { Write-Output "##[warning]setEnv: not a variable name: $name"; return }
	[IO.File]::AppendAllText(%s, "$name=$value`+"`n"+`")
	[Environment]::SetEnvironmentVariable($name, $value, 'Process')
}
function setGateValue([string]$name, [string]$value) {
	[IO.File]::AppendAllText(%s, "$name=$value`+"`n"+`")
}
. %s
if ($null -ne $LASTEXITCODE) { exit $LASTEXITCODE }
`, powerQuote(s.result), powerQuote(s.gate), powerQuote(s.user))
	return strings.ReplaceAll(b.String(), "\n", "\r\n")
}

// powerQuote makes a PowerShell literal of any text; the typographic quotes count as quotes there.
func powerQuote(s string) string {
	return "'" + strings.NewReplacer("'", "''", "\u2018", "\u2018\u2018", "\u2019", "\u2019\u2019", "\u201a", "\u201a\u201a", "\u201b", "\u201b\u201b").Replace(s) + "'"
}
