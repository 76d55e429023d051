package main

import (
	"errors"
	"os"

	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/windows"
)

// narrowUmask has nothing to do: Windows has no umask.
func narrowUmask() int { return -1 }

// surviveReaders has nothing to do: Windows has no SIGPIPE.
func surviveReaders() {}

// isRoot reports whether this process has the rights of an administrator.
func isRoot() bool { return windows.Privileged() }

// ownerID does not ask: on Windows, rights and not owners decide.
func ownerID(string) (string, bool) { return "", false }

// mustSudo leaves it to the system to refuse.
func mustSudo(string) bool { return false }

// isProgram reports whether a file can be run.
func isProgram(info os.FileInfo) bool { return info.Mode().IsRegular() }

// giveToOwner has nothing to do: the rights of the home go over to what is made in it.
func giveToOwner(*service.Installation, string) error { return nil }

// quoted is a word of a command line as cmd.exe and PowerShell take it. No path has a quotation mark.
func quoted(word string) string { return `"` + word + `"` }

// joinSession: there is no such thing here.
func joinSession(string) error { return nil }

// handOver is never needed: there are no homes of others.
func handOver(*service.Installation, string, string) (func() error, error) {
	return nil, errors.ErrUnsupported
}

// stderrBefore: nothing takes standard error away here.
func stderrBefore() (restore func()) { return nil }
