package trust

import (
	"fmt"
	"path"
	"strings"
)

// Any is the system or architecture of a file that runs, or is read, on all of them.
const Any = "any"

// Target is what a file is wanted as: a name as it has in the home directory, without .exe, a system and an architecture as
// Go names them.
type Target struct{ Name, OS, Arch string }

// String is as in "devopsAgent linux/arm64".
func (t Target) String() string { return t.Name + " " + t.OS + "/" + t.Arch }

// programs are those that have a system and an architecture in the name that BK-CI hands them out by.
func programs() []string {
	return []string{"devopsAgent", "devopsDaemon", "devopsWorker", "devopsController", "upgrader", "installer"}
}

// TargetOf says what BK-CI hands out under a name (protocol §1.6.6): upgrade/devopsAgent_linux_arm64, jar/worker-agent.jar,
// jre/macos/jdk17.zip, script/linux/agent_docker_init.sh. Directories in front of these do not matter, and programs and the jar
// need none. A JDK is a zip by name, also when it is a tar.gz. Windows programs are for amd64: their names have no room for
// anything else. A name that says too little is an error.
func TargetOf(name string) (Target, error) {
	name = strings.ReplaceAll(name, `\`, "/")
	base, parent := path.Base(name), path.Base(path.Dir(name))
	switch base {
	case "worker-agent.jar":
		return Target{base, Any, Any}, nil
	case "jre.zip", "jdk.zip", "jdk17.zip", "jre.tar.gz", "jdk.tar.gz", "jdk17.tar.gz":
		goos, arch, found := strings.Cut(parent, "_")
		if !found {
			arch = "amd64"
		}
		if goos, ok := system(goos); ok && word(arch) {
			local := "jdk.zip"
			if strings.HasPrefix(base, "jdk17.") {
				local = "jdk17.zip"
			}
			return Target{local, goos, arch}, nil
		}
		return Target{}, &nameError{name}
	case "agent_docker_init.sh":
		if goos, ok := system(parent); ok {
			return Target{base, goos, Any}, nil
		}
		return Target{}, &nameError{name}
	}
	for _, program := range programs() {
		if base == program+".exe" {
			return Target{program, "windows", "amd64"}, nil
		}
		rest, ok := strings.CutPrefix(base, program+"_")
		if !ok {
			continue
		}
		goos, arch, found := strings.Cut(rest, "_")
		if !found {
			arch = "amd64"
		}
		if goos, ok := system(goos); ok && goos != "windows" && word(arch) {
			return Target{program, goos, arch}, nil
		}
	}
	return Target{}, &nameError{name}
}

// word reports whether a text can be the name of an architecture.
func word(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789") == ""
}

// system is Go's name of a system that BK-CI names.
func system(name string) (goos string, known bool) {
	switch name {
	case "linux", "windows", "darwin":
		return name, true
	case "macos":
		return "darwin", true
	}
	return "", false
}

// nameError: the name of a file does not say what it is.
type nameError struct{ name string }

// Error names the file.
func (e *nameError) Error() string {
	return fmt.Sprintf("the name of %s does not say for which system and architecture it is", e.name)
}

// Hint says which names do.
func (e *nameError) Hint() string {
	return "names that say it are those of BK-CI, as devopsAgent_linux_arm64, upgrader.exe, jre/macos/jdk17.zip, script/linux/agent_docker_init.sh"
}
