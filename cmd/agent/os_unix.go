//go:build unix

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/devops-agent/devops-agent/agent"
	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/cmd/internal/recovery"
	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/service/proc"
)

// narrowUmask makes every file of ours private and returns the umask that builds get: the one we were started with.
func narrowUmask() int {
	if before := syscall.Umask(0o077); before != 0 {
		return before
	}
	return 0o022 // nobody means "writable by everyone"
}

// surviveReaders keeps the agent, and the builds under it, alive when whoever read its standard error is gone: Go
// ends a program that writes there then. A signal that is caught, unlike one that is ignored, is as ever in children.
func surviveReaders() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

// isRoot reports whether this account may do everything.
func isRoot() bool { return os.Geteuid() == 0 }

// ownerID is the id of the account that a file belongs to.
func ownerID(path string) (string, bool) {
	info, err := os.Stat(path)
	if err != nil {
		return "", false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "", false
	}
	return strconv.FormatUint(uint64(stat.Uid), 10), true
}

// mustSudo reports whether a home belongs to somebody else and this account is not root.
func mustSudo(home string) bool {
	uid, ok := ownerID(home)
	return ok && !isRoot() && uid != strconv.Itoa(os.Geteuid())
}

// isProgram reports whether a file can be run.
func isProgram(info os.FileInfo) bool {
	return info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}

// giveToOwner lets the account that an agent runs as have what root has just made in its home: the owner of the home, or
// the account that is named, which then owns the home as well. Nothing happens without root.
//
// The home can be in the hands of that account already, and it may be no friend: links are not followed, nothing outside of
// the home is touched, and neither is a file that has a second name, which could be one of /etc.
func giveToOwner(inst *service.Installation, account string) (err error) {
	if !isRoot() {
		return nil
	}
	info, err := os.Stat(inst.Home)
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	uid, gid := stat.Uid, stat.Gid
	if account != "" {
		found, err := proc.LookupAccount(account)
		if err != nil {
			return fmt.Errorf("find account %s: %w", account, err)
		}
		uid, gid = found.UID, found.GID
	}
	if uid == 0 {
		return nil
	}
	root, err := os.OpenRoot(inst.Home)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	names := []string{config.PropertiesFile, config.BackupFile, config.CertFile, ".enrolment", ".path", ".debug", "tmp", "workspace", "logs", "runtime"}
	for _, dir := range []string{"runtime", "logs"} {
		if entries, err := fs.ReadDir(root.FS(), dir); err == nil {
			for _, entry := range entries {
				names = append(names, dir+"/"+entry.Name())
			}
		}
	}
	if account != "" {
		names = append(names, ".")
	}
	for _, name := range names {
		info, err := root.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok || stat.Uid != 0 || !info.IsDir() && (!info.Mode().IsRegular() || stat.Nlink > 1) {
			continue
		}
		if err := root.Lchown(name, int(uid), int(gid)); err != nil {
			return err
		}
	}
	return nil
}

// joinSession lets verbs find the account's own systemd also after "su" and "sudo -u", which leave no XDG_RUNTIME_DIR: base
// is /run/user.
func joinSession(base string) error {
	if runtime.GOOS != "linux" || os.Getenv("XDG_RUNTIME_DIR") != "" {
		return nil
	}
	dir := filepath.Join(base, strconv.Itoa(os.Geteuid()))
	if info, err := os.Lstat(filepath.Join(dir, "bus")); err != nil || info.Mode().Type() != fs.ModeSocket || mustSudo(dir) {
		return nil //nolint:nilerr // there is no session to join
	}
	return os.Setenv("XDG_RUNTIME_DIR", dir)
}

// quoted is a word of a command line as a shell takes it.
func quoted(word string) string { return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'" }

// handOver copies files of ours into a new directory below tmp/ of a home that belongs to another account, and gives them to that. It
// goes by open directories, so that the account cannot lead us anywhere else. They are not swept until unlock is called.
func handOver(inst *service.Installation, from, name string) (unlock func() error, err error) {
	info, err := os.Stat(inst.Home)
	if err != nil {
		return nil, err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, errors.New("the owner of " + inst.Home + " cannot be found out")
	}
	root, err := os.OpenRoot(inst.Home)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	for _, dir := range []string{"tmp", "runtime"} {
		if err := root.Mkdir(dir, 0o700); err == nil {
			if err := root.Lchown(dir, int(owner.Uid), int(owner.Gid)); err != nil {
				return nil, err
			}
		} else if !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	lock, err := shareOffered(root, inst, owner)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	if err := root.Mkdir("tmp/"+name, 0o700); err != nil {
		return nil, err
	}
	dir, err := root.OpenRoot("tmp/" + name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	entries, err := os.ReadDir(from)
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		if err := copyInto(dir, entry.Name(), filepath.Join(from, entry.Name()), owner); err != nil {
			return nil, err
		}
	}
	self, err := dir.Open(".")
	if err != nil {
		return nil, err
	}
	return lock.Close, errors.Join(self.Chown(int(owner.Uid), int(owner.Gid)), self.Close())
}

// shareOffered takes the lock of agent.Offered in the home of another account, as Use does. The account may keep us from it, and no more.
func shareOffered(root *os.Root, inst *service.Installation, owner *syscall.Stat_t) (_ *os.File, err error) {
	name := agent.Offered{Inst: inst}.LockName()
	f, err := root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	made := err == nil
	if errors.Is(err, fs.ErrExist) {
		f, err = root.OpenFile(name, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("lock %s: not a file", name), err)
	}
	if made { // of another one we do not know whose it is
		if err := f.Chown(int(owner.Uid), int(owner.Gid)); err != nil {
			return nil, err
		}
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil { //nolint:gosec // a descriptor is small
		return nil, fmt.Errorf("lock %s: %w; somebody removes left-overs, try again", name, err)
	}
	return f, nil
}

func copyInto(dir *os.Root, name, from string, owner *syscall.Stat_t) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chown(int(owner.Uid), int(owner.Gid)), out.Close())
}

// stderrBefore takes the descriptor over that was standard error before a version on trial got a file in its place (upgrader start).
// It returns what brings it back, nil when there is none.
func stderrBefore() (restore func()) {
	text := os.Getenv(recovery.EnvStderr)
	if text == "" {
		return nil
	}
	_ = os.Unsetenv(recovery.EnvStderr) // builds have none of this
	fd, err := strconv.Atoi(text)
	if err != nil || fd < 3 {
		return nil
	}
	unix.CloseOnExec(fd)
	return func() {
		_ = dup(fd, 2) // without it, standard error remains that file
		_ = unix.Close(fd)
	}
}
