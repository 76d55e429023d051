package packaging

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const changelogText = `# Changelog

What operators notice, newest first.

## Unreleased

- ` + "`devopsAgent`" + `: takes **builds** ([docs](docs/x.md)),
  over two lines.
- Second.

## 1.1.0 - 2026-01-31

- First release 100 % done.
`

func TestChangelogs(t *testing.T) {
	now := time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)
	all, err := parseChanges(changelogText, "1.2.0-dev.3", now)
	if err != nil {
		t.Fatal(err)
	}
	m := Manifest{Name: "devops-agent", Maintainer: "A <a@example.org>", Changes: all}
	want := `devops-agent (1.2.0~dev.3) unstable; urgency=medium

  * devopsAgent: takes builds (docs), over two lines.
  * Second.

 -- A <a@example.org>  Tue, 03 Feb 2026 04:05:06 +0000

devops-agent (1.1.0) unstable; urgency=medium

  * First release 100 % done.

 -- A <a@example.org>  Sat, 31 Jan 2026 00:00:00 +0000
`
	if got := debChangelog(m); got != want {
		t.Errorf("deb:\n%s", got)
	}
	var entries []map[string]any
	if err := json.Unmarshal([]byte(rpmChangelog(m)), &entries); err != nil || len(entries) != 2 || entries[0]["semver"] != "1.2.0~dev.3-1" {
		t.Errorf("rpm: %v, %v", entries, err)
	}
	// a version about which nothing is said yet
	all, err = parseChanges(strings.Replace(changelogText, "## Unreleased", "## 1.2.0 (2026-02-01)", 1), "1.3.0-dev.1", now)
	if err != nil || len(all) != 3 || all[0].Version != "1.3.0-dev.1" || all[0].Items[0] != "Changes since 1.2.0." || !all[1].Time.Equal(time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("%+v, %v", all, err)
	}
	for _, bad := range []string{"", "## Unreleased\n", "## Someday\n- x\n", "## 1.2.x\n- x\n", "## 1.2.3 - 2026-13-01\n- x\n"} {
		if all, err := parseChanges(bad, "1.0.0", now); err == nil {
			t.Errorf("%q was taken: %+v", bad, all)
		}
	}
}

func TestLicencesOfAModule(t *testing.T) {
	if got := escapeModule("github.com/BurntSushi/toml"); got != "github.com/!burnt!sushi/toml" {
		t.Error(got)
	}
	for text, want := range map[string]string{
		"Apache License\n Version 2.0, January 2004":                                                       "Apache-2.0",
		"Mozilla Public License, version 2.0":                                                              "MPL-2.0",
		"Redistribution and use in source and binary forms, with\n or without. Neither the name of Google": "BSD-3-Clause",
		"Redistribution and use in source and binary forms":                                                "BSD-2-Clause",
		"Permission is hereby granted, free of charge, to any person":                                      "MIT",
		"Permission to use, copy, modify, and/or distribute this software":                                 "ISC",
		"All rights reserved.": "LicenseRef-other",
	} {
		if got := spdx(text); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
	dir := t.TempDir()
	if _, err := licenceIn(dir); err == nil {
		t.Error("a module without a licence was taken")
	}
	for name, text := range map[string]string{"LICENSE.txt": "Copyright (c) 2020 Somebody\r\n\r\nPermission is hereby granted, free of charge, to\n", "NOTICE": "Notice.\n", "license.go": "package x"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := licenceIn(dir)
	if err != nil || l.SPDX != "MIT" || len(l.Copyright) != 1 || l.Copyright[0] != "Copyright (c) 2020 Somebody" || !strings.HasSuffix(l.Text, "\n\nNotice.") || strings.Contains(l.Text, "package") {
		t.Errorf("%+v, %v", l, err)
	}
	// the text of every licence is in both kinds of files, and no line of the machine-readable one is out of its field
	other := Licence{Module: "example.com/a", Version: "v1.0.0", SPDX: "Apache-2.0", Text: "Apache text"}
	l.Module, l.Version = "example.com/m", "v1.2.3"
	text := debCopyright(Manifest{Name: "x", Homepage: "h"}, "MIT License\n\nCopyright (c) 2026 We\n\nPermission", []Licence{l, other})
	for _, want := range []string{"Files: *\nCopyright: Copyright (c) 2026 We\nLicense: MIT\n", "Files: example.com/m@v1.2.3/*\nCopyright: Copyright (c) 2020 Somebody\nLicense: MIT-1\n",
		"License: MIT-1\n Copyright (c) 2020 Somebody\n .\n Permission", "\n .\n Notice.\n", "License: Apache-2.0\n On Debian systems"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	for line := range strings.Lines(text) {
		if line != "\n" && !strings.HasPrefix(line, " ") && !strings.Contains(line, ": ") {
			t.Errorf("%q is neither a field nor its continuation", line)
		}
	}
	both := thirdParty([]Licence{l, other, {Module: "example.com/b", Version: "v2.0.0", Text: other.Text}})
	if !strings.Contains(both, "example.com/a v1.0.0\nexample.com/b v2.0.0\n\nApache text") || strings.Count(both, "Apache text") != 1 {
		t.Error(both)
	}
}

// TestLicencesOfAProgram: one of ours is linked with modules, and all of them have a licence here.
func TestLicencesOfAProgram(t *testing.T) {
	program := filepath.Join(t.TempDir(), "upgrader")
	build := exec.Command("go", "build", "-o", program, "../cmd/upgrader")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	out, err := exec.Command("go", "env", "GOMODCACHE", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	cache, goroot, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	all, err := Licences([]string{program, program}, cache, goroot)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 3 || all[0].Module != "std" || all[0].SPDX != "BSD-3-Clause" {
		t.Errorf("%d licences, the first of %s", len(all), all[0].Module)
	}
	for _, l := range all {
		if l.SPDX == "LicenseRef-other" || l.Text == "" {
			t.Errorf("%s %s: %s, %d bytes", l.Module, l.Version, l.SPDX, len(l.Text))
		}
	}
	if _, err := Licences([]string{program}, t.TempDir(), goroot); err == nil {
		t.Error("without a module cache there are licences")
	}
}
