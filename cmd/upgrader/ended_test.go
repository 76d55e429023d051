//go:build unix

package main

import "testing"

func TestEndOf(t *testing.T) {
	for said, want := range map[[3]string]struct {
		how  string
		code int
	}{
		{"exit-code", "exited", "3"}:    {"exited with 3", 3},
		{"success", "exited", "0"}:      {"exited with 0", 0},
		{"protocol", "exited", "0"}:     {"exited with 0", 0},
		{"oom-kill", "killed", "KILL"}:  {"killed by signal 9 (oom)", -1},
		{"signal", "killed", "SEGV"}:    {"killed by signal 11", -1},
		{"watchdog", "dumped", "ABRT"}:  {"killed by signal 6 (watchdog)", -1},
		{"signal", "killed", "RTMIN+2"}: {"killed by signal RTMIN+2", -1},
		{"signal", "killed", "36"}:      {"killed by signal 36", -1},
		{"start-limit-hit", "", ""}:     {"", -1},
		{"exit-code", "exited", "FOO"}:  {"", -1},
		{"", "", ""}:                    {"", -1},
	} {
		got := endOf(said[0], said[1], said[2])
		code := -1
		if got.Code != nil {
			code = *got.Code
		}
		if got.How != want.how || code != want.code {
			t.Errorf("%q: %q, %d; want %q, %d", said, got.How, code, want.how, want.code)
		}
	}
}
