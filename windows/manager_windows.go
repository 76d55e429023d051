package windows

import (
	"context"
	"errors"
	"fmt"
	"time"
	"unsafe"

	kardianos "github.com/kardianos/service"
	win "golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
	"golang.org/x/sys/windows/svc/mgr"
)

// Manager is the service manager of this machine. Its methods are idempotent.
type Manager struct{}

const (
	lookEvery   = 50 * time.Millisecond // at a service that is on its way
	deleteLimit = 10 * time.Second      // for the last handle of a deleted service
	leastHint   = 30 * time.Second      // for a service that gave none
)

// program stands for the service where kardianos/service wants one: to register it does not run it.
type program struct{}

func (program) Start(kardianos.Service) error { return nil }
func (program) Stop(kardianos.Service) error  { return nil }

// Install registers a service, or changes the registration of one that is there into this, running or not. kardianos/service
// creates it and its event source; what that cannot do (several recovery actions, also after exits that are no crash, the
// shutdown timeout, quotes around every path) is done here.
func (m Manager) Install(s Service) error {
	if err := s.Check(); err != nil {
		return err
	}
	do := "install service " + s.Name
	status, err := m.Query(s.Name)
	if err != nil {
		return err
	}
	if !status.Installed {
		k, err := kardianos.New(program{}, &kardianos.Config{
			Name: s.Name, DisplayName: s.DisplayName, Description: s.Description, Executable: s.Program, Arguments: s.Args,
			Dependencies: s.Dependencies, UserName: account(s.Account),
			Option: kardianos.KeyValue{"StartType": "automatic", "DelayedAutoStart": true},
		})
		if err == nil {
			err = k.Install()
		}
		if err != nil {
			return explain(do, s.Name, err)
		}
	}
	return with(s.Name, do, win.SERVICE_ALL_ACCESS, func(h *mgr.Service) error { return s.apply(h.Handle) })
}

// account is what CreateService wants: nothing for LocalSystem.
func account(name string) string {
	if name == LocalSystem {
		return ""
	}
	return name
}

// apply brings a registered service to what s says.
func (s Service) apply(h win.Handle) error {
	texts := make([]*uint16, 0, 3)
	for _, text := range []string{s.ImagePath(), s.DisplayName, s.Account} {
		p, err := win.UTF16PtrFromString(text)
		if err != nil {
			return err
		}
		texts = append(texts, p)
	}
	if err := win.ChangeServiceConfig(h, ownProcess, autoStart, errorNormal, texts[0], nil, nil, nil, texts[2], nil, texts[1]); err != nil {
		return fmt.Errorf("configure: %w", err)
	}
	description, err := win.UTF16PtrFromString(s.Description)
	if err != nil {
		return err
	}
	actions := make([]win.SC_ACTION, len(s.Recovery))
	for i, pause := range s.Recovery {
		actions[i] = win.SC_ACTION{Type: actionRestart, Delay: uint32(pause.Milliseconds())}
	}
	recovery := win.SERVICE_FAILURE_ACTIONS{ResetPeriod: uint32(s.ResetAfter / time.Second), ActionsCount: uint32(len(actions)),
		Actions: unsafe.SliceData(actions)}
	preshutdown := uint32(s.PreShutdown.Milliseconds())
	for _, c := range []struct {
		level uint32
		info  unsafe.Pointer
		names []string // of the values that hold it
	}{
		{win.SERVICE_CONFIG_DESCRIPTION, unsafe.Pointer(&win.SERVICE_DESCRIPTION{Description: description}), []string{"Description"}},
		{win.SERVICE_CONFIG_DELAYED_AUTO_START_INFO, unsafe.Pointer(&win.SERVICE_DELAYED_AUTO_START_INFO{IsDelayedAutoStartUp: 1}), []string{"DelayedAutostart"}},
		{win.SERVICE_CONFIG_FAILURE_ACTIONS, unsafe.Pointer(&recovery), []string{"FailureActions"}},
		{win.SERVICE_CONFIG_FAILURE_ACTIONS_FLAG, unsafe.Pointer(&win.SERVICE_FAILURE_ACTIONS_FLAG{FailureActionsOnNonCrashFailures: 1}), []string{"FailureActionsOnNonCrashFailures"}},
		{win.SERVICE_CONFIG_PRESHUTDOWN_INFO, unsafe.Pointer(&preshutdown), []string{"PreshutdownTimeout"}},
	} {
		err := win.ChangeServiceConfig2(h, c.level, (*byte)(c.info))
		if err == nil && knows(h, c.level) {
			continue
		}
		if err != nil && !errors.Is(err, win.ERROR_INVALID_LEVEL) {
			return fmt.Errorf("set %s: %w", c.names[0], err)
		}
		// A manager that does not keep it, as Wine's: it reads the registry when it starts, so there it goes.
		if err := s.write(c.names...); err != nil {
			return err
		}
	}
	return s.write("CustomSource", "EventMessageFile", "TypesSupported")
}

// knows reports whether the manager can give a setting back.
func knows(h win.Handle, level uint32) bool {
	buf := make([]byte, 8192)
	var needed uint32
	return win.QueryServiceConfig2(h, level, &buf[0], uint32(len(buf)), &needed) == nil
}

// write sets some of the values of Registry.
func (s Service) write(names ...string) error {
	for _, v := range s.Registry() {
		for _, name := range names {
			if v.Name != name {
				continue
			}
			if err := v.write(); err != nil {
				return fmt.Errorf("write %s to the registry: %w", name, err)
			}
		}
	}
	return nil
}

func (v Value) write() (err error) {
	key, _, err := registry.CreateKey(registry.LOCAL_MACHINE, v.Key, registry.SET_VALUE)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, key.Close()) }()
	switch data := v.Data.(type) {
	case uint32:
		return key.SetDWordValue(v.Name, data)
	case []byte:
		return key.SetBinaryValue(v.Name, data)
	case []string:
		return key.SetStringsValue(v.Name, data)
	case string:
		if v.Type == "REG_EXPAND_SZ" {
			return key.SetExpandStringValue(v.Name, data)
		}
		return key.SetStringValue(v.Name, data)
	}
	return fmt.Errorf("%T: %w", v.Data, errors.ErrUnsupported)
}

// Remove deletes a service and its event source, and waits until both are gone. A running service is to be stopped before.
func (m Manager) Remove(ctx context.Context, name string) error {
	do := "remove service " + name
	err := with(name, do, win.SERVICE_ALL_ACCESS, func(s *mgr.Service) error { return s.Delete() })
	var gone *NotInstalledError
	var marked *DeletedError
	if err != nil && !errors.As(err, &gone) && !errors.As(err, &marked) {
		return err
	}
	if err := registry.DeleteKey(registry.LOCAL_MACHINE, sourcesKey+name); err != nil && !errors.Is(err, registry.ErrNotExist) {
		return explain("remove event source "+name, name, err)
	}
	limit := time.Now().Add(deleteLimit)
	for {
		status, err := m.Query(name)
		if err != nil || !status.Installed {
			return err
		}
		if time.Now().After(limit) {
			return &DeletedError{name}
		}
		if err := pause(ctx, lookEvery); err != nil {
			return err
		}
	}
}

// Start starts a service and returns when it runs; one that runs is left alone. The end of ctx ends the waiting only.
func (Manager) Start(ctx context.Context, name string) error {
	do := "start service " + name
	return with(name, do, win.SERVICE_START|win.SERVICE_QUERY_STATUS|win.SERVICE_QUERY_CONFIG, func(s *mgr.Service) error {
		if now, err := statusOf(s.Handle); err == nil && now.CurrentState == win.SERVICE_STOP_PENDING {
			if err := await(ctx, s, win.SERVICE_STOPPED); err != nil { // else it would be refused
				return err
			}
		}
		if err := s.Start(); err != nil && !errors.Is(err, win.ERROR_SERVICE_ALREADY_RUNNING) {
			return err
		}
		return await(ctx, s, win.SERVICE_RUNNING)
	})
}

// Stop tells a service to stop and returns when its process has ended; one that does not run, or is not there, is left
// alone. It waits for as long as the service shows progress, and ctx lives. The end of ctx ends the waiting only.
func (Manager) Stop(ctx context.Context, name string) error {
	do := "stop service " + name
	err := with(name, do, win.SERVICE_STOP|win.SERVICE_QUERY_STATUS, func(s *mgr.Service) error {
		before, err := statusOf(s.Handle)
		if err != nil || before.CurrentState == win.SERVICE_STOPPED {
			return err
		}
		var process win.Handle
		if before.ProcessId != 0 {
			if process, err = win.OpenProcess(win.SYNCHRONIZE, false, before.ProcessId); err == nil {
				defer func() { _ = win.CloseHandle(process) }()
			}
		}
		var told win.SERVICE_STATUS
		for {
			err := win.ControlService(s.Handle, win.SERVICE_CONTROL_STOP, &told)
			if errors.Is(err, win.ERROR_SERVICE_CANNOT_ACCEPT_CTRL) {
				now, qerr := statusOf(s.Handle)
				if qerr != nil {
					return qerr
				}
				if now.CurrentState == win.SERVICE_START_PENDING { // it takes orders only when it runs
					if err := pause(ctx, lookEvery); err != nil {
						return err
					}
					continue
				}
				break // it is on its way
			}
			if err != nil && !errors.Is(err, win.ERROR_SERVICE_NOT_ACTIVE) {
				return err
			}
			break
		}
		if err := await(ctx, s, win.SERVICE_STOPPED); err != nil {
			return err
		}
		return ended(ctx, process)
	})
	var gone *NotInstalledError
	if errors.As(err, &gone) {
		return nil
	}
	return err
}

// ended waits for a process: a service says that it has stopped while its process still holds files.
func ended(ctx context.Context, process win.Handle) error {
	for process != 0 {
		which, err := win.WaitForSingleObject(process, uint32(lookEvery.Milliseconds()))
		if err != nil || which == win.WAIT_OBJECT_0 {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

// await polls until a service is in a state. It gives up when the service has shown no progress for longer than it said that
// it would, or has ended instead of starting.
func await(ctx context.Context, s *mgr.Service, want uint32) error {
	since := time.Now()
	var last win.SERVICE_STATUS_PROCESS
	for {
		now, err := statusOf(s.Handle)
		if err != nil {
			return err
		}
		if now.CurrentState == want {
			return nil
		}
		if now.CurrentState == win.SERVICE_STOPPED { // so the state that is wanted is running
			return &EndedError{s.Name, now.Win32ExitCode, now.ServiceSpecificExitCode}
		}
		if now.CheckPoint != last.CheckPoint || now.CurrentState != last.CurrentState {
			since, last = time.Now(), now
		}
		hint := max(2*time.Duration(now.WaitHint)*time.Millisecond, leastHint)
		if waited := time.Since(since); waited > hint {
			return &StuckError{s.Name, stateName(now.CurrentState), waited}
		}
		if err := pause(ctx, lookEvery); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// Query asks about a service. One that is not there is no error.
func (Manager) Query(name string) (Status, error) {
	var out Status
	err := with(name, "ask for service "+name, win.SERVICE_QUERY_STATUS|win.SERVICE_QUERY_CONFIG, func(s *mgr.Service) error {
		now, err := statusOf(s.Handle)
		if err != nil {
			return err
		}
		buf := make([]byte, 8192) // the most that the manager needs
		config := (*win.QUERY_SERVICE_CONFIG)(unsafe.Pointer(&buf[0]))
		var needed uint32
		if err := win.QueryServiceConfig(s.Handle, config, uint32(len(buf)), &needed); err != nil {
			return err
		}
		out = Status{Installed: true, Enabled: config.StartType == autoStart, State: stateName(now.CurrentState), PID: int(now.ProcessId),
			Exit: now.Win32ExitCode, Image: win.UTF16PtrToString(config.BinaryPathName)}
		if now.CurrentState == win.SERVICE_STOPPED {
			out.PID = 0
		}
		if win.Errno(now.Win32ExitCode) == win.ERROR_SERVICE_SPECIFIC_ERROR {
			out.Specific = now.ServiceSpecificExitCode
		}
		out.Started = startOf(now.ProcessId)
		return nil
	})
	var gone *NotInstalledError
	if errors.As(err, &gone) {
		return Status{State: "not installed"}, nil
	}
	return out, err
}

func startOf(pid uint32) time.Time {
	if pid == 0 {
		return time.Time{}
	}
	process, err := win.OpenProcess(win.PROCESS_QUERY_LIMITED_INFORMATION, false, pid)
	if err != nil {
		return time.Time{}
	}
	defer func() { _ = win.CloseHandle(process) }()
	var creation, exit, kernel, user win.Filetime
	if win.GetProcessTimes(process, &creation, &exit, &kernel, &user) != nil {
		return time.Time{}
	}
	return time.Unix(0, creation.Nanoseconds())
}

func statusOf(h win.Handle) (win.SERVICE_STATUS_PROCESS, error) {
	var status win.SERVICE_STATUS_PROCESS
	var needed uint32
	err := win.QueryServiceStatusEx(h, win.SC_STATUS_PROCESS_INFO, (*byte)(unsafe.Pointer(&status)), uint32(unsafe.Sizeof(status)), &needed)
	return status, err
}

func stateName(state uint32) string {
	switch state {
	case win.SERVICE_STOPPED:
		return "stopped"
	case win.SERVICE_START_PENDING:
		return "start pending"
	case win.SERVICE_STOP_PENDING:
		return "stop pending"
	case win.SERVICE_RUNNING:
		return "running"
	}
	return fmt.Sprintf("state %d", state)
}

// with opens a service for some rights, and no more: who may only look need not be an administrator.
func with(name, do string, rights uint32, then func(s *mgr.Service) error) (err error) {
	defer func() { err = explain(do, name, err) }()
	manager, err := win.OpenSCManager(nil, nil, win.SC_MANAGER_CONNECT)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, win.CloseServiceHandle(manager)) }()
	named, err := win.UTF16PtrFromString(name)
	if err != nil {
		return err
	}
	h, err := win.OpenService(manager, named, rights)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, win.CloseServiceHandle(h)) }()
	return then(&mgr.Service{Name: name, Handle: h})
}

// explain makes errors of the manager into ones that say what to do.
func explain(do, name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, win.ERROR_SERVICE_DOES_NOT_EXIST):
		return fmt.Errorf("%s: %w", do, &NotInstalledError{name})
	case errors.Is(err, win.ERROR_SERVICE_MARKED_FOR_DELETE):
		return fmt.Errorf("%s: %w", do, &DeletedError{name})
	case errors.Is(err, win.ERROR_ACCESS_DENIED):
		return &RightsError{do, err}
	}
	return fmt.Errorf("%s: %w", do, err)
}
