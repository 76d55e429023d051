package job

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// name is what an id from the server must look like before it becomes part of a file name or a script
// (weaknesses W-29, W-43).
var name = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)

// checkIDs reports the first id of a build that cannot be part of a file name.
func checkIDs(b wire.Build) error {
	for _, id := range []struct{ what, value string }{{"projectId", b.Project}, {"buildId", b.ID}, {"vmSeqId", b.VMSeq}} {
		if !name.MatchString(id.value) {
			return fmt.Errorf("%s %.40q is not a usable id", id.what, id.value)
		}
	}
	return nil
}

// key names a build in file names (protocol §2.1).
func key(b wire.Build) string { return b.ID + "_" + b.VMSeq }

// safeWord needs no quoting in any shell of Unix.
var safeWord = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-]+$`)

// quote makes one word of a POSIX shell (and of csh, without "!") of any text without a line break.
func quote(word string) string {
	if safeWord.MatchString(word) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
