//go:build unix

package service

import (
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"

	"github.com/devops-agent/devops-agent/systemd"
)

// ownerOf names the account that owns a file; one whose name a unit cannot hold, or that has none, by its number.
func ownerOf(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "", fmt.Errorf("%s has no owner", path)
	}
	uid := strconv.FormatUint(uint64(stat.Uid), 10)
	if u, err := user.LookupId(uid); err == nil && systemd.ValidAccount(u.Username) {
		return u.Username, nil
	}
	return uid, nil
}
