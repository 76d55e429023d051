package packaging

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

func jsonTo(text string, to any) error { return json.Unmarshal([]byte(text), to) }

func jsonFrom(from any) (string, error) {
	text, err := json.Marshal(from)
	return string(text), err
}

// pkgTexts are all scripts of a package, those in the payload included.
func pkgTexts(m Manifest) map[string]string {
	all := map[string]string{"preinstall": m.Scripts.PreInstall, "postinstall": m.Scripts.PostInstall}
	for _, f := range m.Files {
		if strings.HasPrefix(string(f.Data), "#!") {
			all[f.Path] = string(f.Data)
		}
	}
	return all
}

// breaches are the rules that a script breaks, one word each.
func breaches(check func(string) []pkgFinding, text string) string {
	rules := map[pkgRule]bool{}
	for _, f := range check(text) {
		rules[f.rule] = true
	}
	return fmt.Sprint(slices.Sorted(maps.Keys(rules)))
}

// holds tries one rule on scripts that break it and on those that do not, and then on ours.
func holds(t *testing.T, rule pkgRule, check func(string) []pkgFinding, bad, good []string) {
	t.Helper()
	for _, text := range bad {
		if got := breaches(check, text); got != fmt.Sprint([]pkgRule{rule}) {
			t.Errorf("%q breaks %s", text, got)
		}
	}
	for _, text := range good {
		if got := check(text); len(got) > 0 {
			t.Errorf("%q: %v", text, got)
		}
	}
	texts := pkgTexts(macManifest(t, "v1.0.0"))
	if len(texts) != 3 {
		t.Fatalf("%d scripts", len(texts))
	}
	for name, text := range texts {
		for _, f := range check(text) {
			t.Errorf("%s: %s", name, f.text)
		}
	}
}

// TestAdvisoryZshInInstallerScripts: zsh reads ~/.zshenv of the user who installs, and root runs it.
func TestAdvisoryZshInInstallerScripts(t *testing.T) {
	holds(t, ruleShell, checkShell,
		[]string{"#!/bin/zsh\n", "#!/bin/zsh --no-rcs\n", "#!/usr/bin/env sh\n", "#!/bin/bash\n", "#!/bin/sh -l\n", "#! /bin/sh\n", "echo\n", "", "#!/usr/local/bin/python3\n", "#!/bin/sh\r\n"},
		[]string{"#!/bin/sh\nexit 0\n"})
}

// TestAdvisoryUnquotedPaths: a volume is called "Macintosh HD".
func TestAdvisoryUnquotedPaths(t *testing.T) {
	holds(t, ruleQuotes, checkQuotes,
		[]string{
			"rm -rf $3/x\n", "rm -rf ${root}/x\n", "x=1\ncd `dirname $0`\n", "rm $(cat f)\n", "[ -n $x ]\n", "for f in $list; do :; done\n", "f $@\n", "echo \"$(rm $x)\"\n",
			"case x in\na) rm $y ;;\nesac\n", "x=\"$1\" rm $2\n", "cat >$out\n", "rm \"a\"$x\n", "echo 'it''s' $x\n", "if ! test $x; then :; fi\n", "cat <<E\nE\nrm $x\n",
		},
		[]string{
			"rm \"$3/x\"\n", "x=$3/y\n", "x=${3%/}\nexport x\n", "case $x in a) ;; esac\n", "case $a$b in a) ;; esac\n", "n=$(($1 * 5))\n", "x=$(cat \"$f\")\n", "[ $# = 1 ] || exit $?\n",
			"kill $!\n", "# $x\n", "echo '$x'\n", "echo \\$x\n", "cat <<'E'\n$x\nE\nrm a\n", "f() { ! \"$@\"; }\n", "x=a#$b\n", "[ $((a + 1)) -gt 0 ]\n",
		})
}

// TestAdvisoryRelativePrograms: whoever can put a directory into PATH, or chooses where the script starts, is root.
func TestAdvisoryRelativePrograms(t *testing.T) {
	system := "#!/bin/sh\nset -eu\nPATH=/usr/bin:/bin:/usr/sbin:/sbin\nexport PATH\n"
	holds(t, rulePath, checkPath,
		[]string{
			"#!/bin/sh\nrm x\n", "#!/bin/sh\nPATH=/usr/local/bin:/bin\nrm x\n", "#!/bin/sh\nPATH=/bin:\nrm x\n", "#!/bin/sh\nPATH=$PATH:/bin\nrm x\n", system + "./helper\n", system + "x && ../helper\n",
			system + "PATH=/opt/homebrew/bin:/bin rm\n", "#!/bin/sh\nlaunchctl print x\nPATH=/bin\n",
		},
		[]string{"#!/bin/sh\nexit 0\n", system + "rm x\n", system + "env -i PATH=\"$PATH\" rm\n", "#!/bin/sh\n# says nothing\n"})
}

// TestAdvisoryWorldWritableTemporaryFiles: what is in /tmp is whoever's who was there first.
func TestAdvisoryWorldWritableTemporaryFiles(t *testing.T) {
	holds(t, ruleTemporary, checkTemporary,
		[]string{
			"echo x >/tmp/x\n", "cd /private/tmp\n", "d=$(mktemp -d)\n", "cp x \"$TMPDIR\"\n", "touch /Users/Shared/x\n", "cat /var/tmp/y\n", "chmod 777 x\n", "chmod -R 0775 x\n", "chmod o+w x\n", "chmod a=rw x\n",
			"chmod +w x\n", "umask 0\n", "umask 002\n", "mkdir -m 1777 x\n", "chmod 4757 x\n",
		},
		[]string{"# not /tmp\nchmod 0755 x\n", "chmod 644 y\n", "umask 022\n", "umask 077\n", "mkdir -m 0700 \"$x\"\n", "chmod u+w,go-w x\n", "chmod a+rx x\n"})
}

// TestAdvisorySecretsInTheLog: the output of a package's scripts is in /var/log/install.log.
func TestAdvisorySecretsInTheLog(t *testing.T) {
	holds(t, ruleSecret, checkSecrets,
		[]string{"echo \"$TOKEN\"\n", "cat enroll.d/*\n", "set -x\n", "set -eux\n", "set -o xtrace\n", "set -v\n", "security find-generic-password\n", "secret=$(cat f)\n"},
		[]string{"# a token\nset -eu\n", "echo installed\n"})
}

// TestAdvisoryReplaceableDaemon: what launchd starts as root, and every directory above it, is root's alone.
func TestAdvisoryReplaceableDaemon(t *testing.T) {
	m := macManifest(t, "v1.0.0")
	if got := checkReplaceable(m.Files); len(got) > 0 {
		t.Errorf("ours: %v", got)
	}
	program := pkgJob(m.Layout).Program[0]
	// The directories on the way are in the package, so that they have an owner and a mode, and preinstall looks at what is there.
	for dir := program; dir != ""; dir = dir[:strings.LastIndexByte(dir, '/')] {
		if !slices.ContainsFunc(m.Files, func(f File) bool { return f.Path == dir }) {
			t.Errorf("%s is not in the package", dir)
		}
		if dir != program && !strings.Contains(m.Scripts.PreInstall, " "+dir+" ") && !strings.Contains(m.Scripts.PreInstall, " "+dir+";") {
			t.Errorf("preinstall does not look at %s", dir)
		}
	}
	for what, change := range map[string]func(f *File){
		"a program that a group may write": func(f *File) { f.Mode = 0o775 },
		"a program of somebody":            func(f *File) { f.Owner = "ci" },
		"a program that is a link":         func(f *File) { f.Kind, f.Target = Link, "/Users/ci/upgrader" },
		"a program that cannot run":        func(f *File) { f.Mode = 0o644 },
		"a program that is not there":      func(f *File) { f.Path += "2" },
	} {
		files := slices.Clone(m.Files)
		change(&files[slices.IndexFunc(files, func(f File) bool { return f.Path == program })])
		if got := checkReplaceable(files); len(got) == 0 || got[0].rule != ruleReplaceable {
			t.Errorf("%s: %v", what, got)
		}
	}
	for _, dir := range []string{"/usr/local", "/usr/local/libexec", m.Layout.Vendor, "/Library/LaunchDaemons"} {
		files := slices.Clone(m.Files)
		files[slices.IndexFunc(files, func(f File) bool { return f.Path == dir })].Mode = 0o777
		if got := checkReplaceable(files); len(got) == 0 {
			t.Errorf("%s is writable for all", dir)
		}
	}
	job := slices.IndexFunc(m.Files, func(f File) bool { return f.Path == pkgJob(m.Layout).File("/Library/LaunchDaemons") })
	for what, text := range map[string]string{
		"no property list":            "Label",
		"a program below a user":      strings.ReplaceAll(string(m.Files[job].Data), program, "/Users/ci/upgrader"),
		"a program without its path":  strings.ReplaceAll(string(m.Files[job].Data), program, "upgrader"),
		"a program of nobody we know": strings.ReplaceAll(string(m.Files[job].Data), program, "/usr/local/bin/upgrader"),
	} {
		files := slices.Clone(m.Files)
		files[job].Data = []byte(text)
		if got := checkReplaceable(files); len(got) == 0 {
			t.Errorf("%s was accepted", what)
		}
	}
}
