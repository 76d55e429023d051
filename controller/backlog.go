package controller

import (
	"slices"
	"strings"
)

// backlog is the queued builds by what they want of an agent, each list by number. Who has room looks at the first build of
// each kind, however long the queue is.
type backlog map[string][]*build

// wantedKey is what a build wants of an agent, as a text that is equal for builds that fit the same agents.
func (b *build) wantedKey() string {
	system := ""
	for _, os := range []string{"linux", "windows"} {
		if b.spec.fits(os) {
			system += os + " "
		}
	}
	labels := slices.Clone(b.Labels)
	slices.Sort(labels)
	return b.Project + "\x00" + system + "\x00" + strings.Join(labels, "\x00")
}

func byNumber(x, y *build) int { return int(x.Number - y.Number) }

func (l backlog) add(b *build) {
	b.wants = b.wantedKey()
	i, _ := slices.BinarySearchFunc(l[b.wants], b, byNumber)
	l[b.wants] = slices.Insert(l[b.wants], i, b)
}

func (l backlog) remove(b *build) {
	i, found := slices.BinarySearchFunc(l[b.wants], b, byNumber)
	if !found {
		return
	}
	if rest := slices.Delete(l[b.wants], i, i+1); len(rest) > 0 {
		l[b.wants] = rest
	} else {
		delete(l, b.wants)
	}
}

// first is the build with the lowest number of the kinds that want accepts, nil when there is none. It asks want once a
// kind, with the first build of it.
func (l backlog) first(accept func(b *build) bool) (first *build) {
	for _, list := range l {
		if b := list[0]; (first == nil || b.Number < first.Number) && accept(b) {
			first = b
		}
	}
	return first
}
