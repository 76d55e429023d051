package upgrader

import (
	"path"
	"slices"

	"github.com/devops-agent/devops-agent/upgrader/journal"
)

// Order is what is wanted here. The server orders JDK from the seed generation, JDK17 from the ask generation (protocol §1.6.6).
type Order struct {
	Agent  bool // with daemon and upgrader
	Native bool // devopsWorker; no server of BK-CI has it
	Worker bool
	JDK    bool
	JDK17  bool
	Init   bool // the script that containers begin with
}

// Any reports whether anything is wanted.
func (o Order) Any() bool { return o != Order{} }

// Only is what of the order concerns parts that need no restart.
func (o Order) Only() Order {
	o.Agent, o.Native = false, false
	return o
}

// parts lists what has to be fetched, in the order of protocol §4.4.
func (o Order) parts() []journal.Part {
	var list []journal.Part
	for _, one := range []struct {
		wanted bool
		parts  []journal.Part
	}{
		{o.Agent, []journal.Part{journal.Upgrader, journal.Daemon, journal.Agent}}, {o.Native, []journal.Part{journal.Native}},
		{o.Worker, []journal.Part{journal.Worker}}, {o.JDK, []journal.Part{journal.JDK}}, {o.JDK17, []journal.Part{journal.JDK17}},
		{o.Init, []journal.Part{journal.Init}},
	} {
		if one.wanted {
			list = append(list, one.parts...)
		}
	}
	return list
}

// RemoteName is BK-CI's name of a part for a system, by which a server hands it out (protocol §1.6.6). Its names are older than
// Go's: darwin is macos there, amd64 has no suffix, nor has any architecture that it does not know.
func RemoteName(p journal.Part, goos, goarch string) string {
	system, suffix := goos, ""
	if goos == "darwin" {
		system = "macos"
	}
	if goos != "windows" && (goarch == "arm64" || goos == "linux" && goarch == "mips64") {
		suffix = "_" + goarch
	}
	switch p {
	case journal.Worker:
		return "jar/worker-agent.jar"
	case journal.JDK:
		return "jre/" + system + suffix + "/jre.zip"
	case journal.JDK17:
		return "jre/" + system + suffix + "/jdk17.zip"
	case journal.Init:
		return "script/" + system + "/agent_docker_init.sh"
	}
	name := journal.Place(p, "")
	if goos == "windows" {
		return "upgrade/" + name + ".exe"
	}
	return "upgrade/" + name + "_" + system + suffix
}

// localName is that of a part's download in tmp/ (protocol §1.6.6).
func localName(p journal.Part, goos string) string {
	switch p {
	case journal.JDK:
		return "jdk.zip"
	case journal.JDK17:
		return "jdk17.zip"
	}
	return journal.Place(p, goos)
}

// targetName is that of a part in signatures (package trust): as in home, without .exe.
func targetName(p journal.Part) string { return localName(p, "") }

// names are those under which somebody may have put a part's file, the most exact first: as a server has it, as BK-CI's package has
// it (protocol §5.4), and as it is called here.
func names(p journal.Part, goos, goarch string) []string {
	remote, local := RemoteName(p, goos, goarch), localName(p, goos)
	list := []string{remote, path.Base(remote), local}
	switch p {
	case journal.Upgrader:
		list = append(list, "tmp/"+local)
	case journal.JDK:
		list = append(list, "jre.tar.gz", "jdk.tar.gz")
	case journal.JDK17:
		list = append(list, "jdk17.tar.gz")
	}
	return slices.Compact(list) // jar and script are called the same everywhere
}

// isTree reports whether a part is a directory.
func isTree(p journal.Part) bool { return p == journal.JDK || p == journal.JDK17 }

// isProgram reports whether a part is a program, which can be asked for its version.
func isProgram(p journal.Part) bool {
	return p == journal.Agent || p == journal.Daemon || p == journal.Native || p == journal.Upgrader
}
