package windows

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"unsafe"

	win "golang.org/x/sys/windows"
)

// ErrNobodyHere: nobody is logged on at the console.
var ErrNobodyHere = errors.New("nobody is logged on at the console")

// User is somebody who is logged on. Close gives the token back.
type User struct {
	Name, SID string
	token     win.Token
}

// ConsoleUser is who is logged on at the console. Only SYSTEM may ask. The error is ErrNobodyHere when there is no session
// or it shows the logon screen.
func ConsoleUser() (*User, error) {
	session := win.WTSGetActiveConsoleSessionId()
	if session == ^uint32(0) {
		return nil, ErrNobodyHere
	}
	u := &User{}
	if err := win.WTSQueryUserToken(session, &u.token); err != nil {
		if errors.Is(err, win.ERROR_NO_TOKEN) || errors.Is(err, win.ERROR_FILE_NOT_FOUND) || errors.Is(err, win.ERROR_CTX_WINSTATION_NOT_FOUND) {
			return nil, ErrNobodyHere
		}
		return nil, fmt.Errorf("ask who is logged on in session %d: %w", session, err)
	}
	user, err := u.token.GetTokenUser()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("ask who is logged on in session %d: %w", session, err), u.Close())
	}
	u.SID, u.Name = user.User.Sid.String(), user.User.Sid.String()
	if name, domain, _, err := user.User.Sid.LookupAccount(""); err == nil {
		u.Name = domain + `\` + name
	}
	if u.SID == sidSystem {
		return nil, errors.Join(ErrNobodyHere, u.Close()) // a session without a login: never fall back to SYSTEM
	}
	return u, nil
}

// Close gives the token back.
func (u *User) Close() error { return u.token.Close() }

// Start starts a command as the user, on the desktop of the user's session, in place of cmd.Start: cmd.Wait and cmd.Process
// work as after that. It inherits no handles, so that there is no output. The environment is the user's own, with what
// cmd.Env has beyond our own environment.
func (u *User) Start(cmd *exec.Cmd) error {
	env, err := u.token.Environ(false)
	if err != nil {
		return fmt.Errorf("make the environment of %s: %w", u.Name, err)
	}
	own := map[string]bool{}
	for _, entry := range os.Environ() {
		own[entry] = true
	}
	for _, entry := range cmd.Env {
		if !own[entry] {
			env = append(env, entry)
		}
	}
	block, err := environmentBlock(env)
	if err != nil {
		return err
	}
	line := quote(cmd.Path)
	for _, arg := range cmd.Args[1:] {
		line += " " + quote(arg)
	}
	texts := make([]*uint16, 0, 4)
	for _, text := range []string{cmd.Path, line, cmd.Dir, `winsta0\default`} {
		p, err := win.UTF16PtrFromString(text)
		if err != nil {
			return err
		}
		texts = append(texts, p)
	}
	start := win.StartupInfo{Desktop: texts[3], Flags: win.STARTF_USESHOWWINDOW, ShowWindow: win.SW_HIDE}
	start.Cb = uint32(unsafe.Sizeof(start))
	flags := uint32(win.CREATE_UNICODE_ENVIRONMENT | win.CREATE_NEW_PROCESS_GROUP | win.CREATE_NO_WINDOW)
	if cmd.SysProcAttr != nil {
		flags |= cmd.SysProcAttr.CreationFlags
	}
	var made win.ProcessInformation
	if err := win.CreateProcessAsUser(u.token, texts[0], texts[1], nil, nil, false, flags, block, texts[2], &start, &made); err != nil {
		return &os.PathError{Op: "start as " + u.Name, Path: cmd.Path, Err: err}
	}
	process, err := os.FindProcess(int(made.ProcessId)) // while our handle keeps the number from another process
	if err != nil {
		_ = win.TerminateProcess(made.Process, 1)
	} else {
		cmd.Process = process
	}
	return errors.Join(err, win.CloseHandle(made.Thread), win.CloseHandle(made.Process))
}

// environmentBlock is env as CreateProcess wants it.
func environmentBlock(env []string) (*uint16, error) {
	var block []uint16
	for _, entry := range env {
		text, err := syscall.UTF16FromString(strings.TrimRight(entry, "\x00"))
		if err != nil {
			return nil, fmt.Errorf("environment: %w", err)
		}
		block = append(block, text...)
	}
	block = append(block, 0, 0)
	return &block[0], nil
}
