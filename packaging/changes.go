package packaging

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Change is what one version brought.
type Change struct {
	Version string // without "v"
	Time    time.Time
	Items   []string // plain text, one line each
}

// maxText is more than any text of ours that goes into a package.
const maxText = 1 << 22

// readText reads a text of the source tree, of at most 4 MiB.
func readText(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if info.Size() > maxText {
		return "", fmt.Errorf("read %s: it has %d bytes", path, info.Size())
	}
	data, err := os.ReadFile(path)
	return string(data), err
}

// changes reads CHANGELOG.md. What is unreleased there is what this release brings; other versions have their date behind them:
// "## 1.2.3 - 2026-01-31".
func changes(r Release) ([]Change, error) {
	text, err := readText(filepath.Join(r.Root, "CHANGELOG.md"))
	if err != nil {
		return nil, err
	}
	v, err := parseVersion(r.Version)
	if err != nil {
		return nil, err
	}
	all, err := parseChanges(text, v.String(), r.Time.UTC())
	if err != nil {
		return nil, fmt.Errorf("CHANGELOG.md: %w", err)
	}
	return all, nil
}

var (
	changeHead = regexp.MustCompile(`^## \[?v?([0-9][^\] ]*)\]?(?: +[-–(]? *([0-9]{4}-[0-9]{2}-[0-9]{2})\)?)?$`)
	linkText   = regexp.MustCompile(`\[([^\]\n]*)\]\([^)\n]*\)`)
)

func parseChanges(text, current string, now time.Time) ([]Change, error) {
	var all []Change
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, " \t\r\n")
		switch {
		case strings.HasPrefix(line, "## Unreleased"):
			all = append(all, Change{Version: current, Time: now})
		case strings.HasPrefix(line, "## "):
			m := changeHead.FindStringSubmatch(line)
			if m == nil {
				return nil, fmt.Errorf("%q is no version", line)
			}
			if _, err := parseVersion(m[1]); err != nil {
				return nil, err
			}
			at := now
			if m[2] != "" {
				day, err := time.Parse(time.DateOnly, m[2])
				if err != nil {
					return nil, fmt.Errorf("%q: %w", line, err)
				}
				at = day
			}
			all = append(all, Change{Version: m[1], Time: at})
		case strings.HasPrefix(line, "- ") && len(all) > 0:
			last := &all[len(all)-1]
			last.Items = append(last.Items, line[2:])
		case strings.HasPrefix(line, "  ") && len(all) > 0 && len(all[len(all)-1].Items) > 0:
			items := all[len(all)-1].Items
			items[len(items)-1] += " " + strings.TrimSpace(line)
		}
	}
	kept := all[:0]
	for _, c := range all {
		for i, item := range c.Items {
			item = linkText.ReplaceAllString(item, "$1")
			c.Items[i] = strings.NewReplacer("`", "", "**", "").Replace(item)
		}
		if len(c.Items) > 0 {
			kept = append(kept, c)
		}
	}
	if len(kept) == 0 {
		return nil, errors.New("no changes in it")
	}
	if kept[0].Version != current { // a build between versions without a word about it yet
		kept = append([]Change{{Version: current, Time: now, Items: []string{"Changes since " + kept[0].Version + "."}}}, kept...)
	}
	return kept, nil
}

// wrap breaks a text into lines of at most width characters where that is possible.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		switch {
		case line == "":
			line = word
		case len(line)+1+len(word) > width:
			lines = append(lines, line)
			line = word
		default:
			line += " " + word
		}
	}
	return append(lines, line)
}

// debChangelog is the text of debian/changelog.
func debChangelog(m Manifest) string {
	var b strings.Builder
	for i, c := range m.Changes {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s (%s) unstable; urgency=medium\n\n", m.Name, debVersion(c.Version))
		for _, item := range c.Items {
			for j, line := range wrap(item, 74) {
				mark := "  * "
				if j > 0 {
					mark = "    "
				}
				b.WriteString(mark + line + "\n")
			}
		}
		fmt.Fprintf(&b, "\n -- %s  %s\n", m.Maintainer, c.Time.UTC().Format(time.RFC1123Z))
	}
	return b.String()
}

// rpmChangelog is the changelog as nfpm wants it, which is YAML; JSON is YAML as well.
func rpmChangelog(m Manifest) string {
	type note struct {
		Note string `json:"note"`
	}
	type entry struct {
		Semver   string    `json:"semver"`
		Date     time.Time `json:"date"`
		Packager string    `json:"packager"`
		Changes  []note    `json:"changes"`
	}
	all := make([]entry, len(m.Changes))
	for i, c := range m.Changes {
		all[i] = entry{Semver: debVersion(c.Version) + "-1", Date: c.Time.UTC(), Packager: m.Maintainer}
		for _, item := range c.Items {
			all[i].Changes = append(all[i].Changes, note{strings.ReplaceAll(item, "%", "%%")})
		}
	}
	data, err := json.Marshal(all)
	if err != nil {
		return "[]" // cannot be: it is text and times
	}
	return string(data)
}
