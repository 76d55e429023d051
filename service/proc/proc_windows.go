package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	win "golang.org/x/sys/windows"
)

// jobHandle is the Job Object of a child. It is closed when the child was collected by the garbage collector or we
// end; neither kills what is in it.
type jobHandle struct{ h *win.Handle }

// LookupAccount is not possible on Windows: a worker runs as the agent does (protocol §3.6.4).
func LookupAccount(name string) (*Account, error) {
	return nil, fmt.Errorf("look up account %q: %w", name, errors.ErrUnsupported)
}

func prepare(cmd *exec.Cmd, c Command) error {
	if c.Account != nil {
		return fmt.Errorf("as %s: %w", c.Account.Name, errors.ErrUnsupported)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		HideWindow: true,
		// suspended: nothing may be spawned before the child is in its job
		CreationFlags: win.CREATE_SUSPENDED | win.CREATE_NEW_PROCESS_GROUP,
	}
	return nil
}

func (p *Process) start(cmd *exec.Cmd, _ int) error {
	job, err := win.CreateJobObject(nil, nil)
	if err != nil {
		return fmt.Errorf("create job object: %w", err)
	}
	umaskLock.Lock()
	err = cmd.Start()
	umaskLock.Unlock()
	if err != nil {
		_ = win.CloseHandle(job)
		return err
	}
	p.pid = cmd.Process.Pid
	var assign error
	err = cmd.Process.WithHandle(func(h uintptr) { assign = win.AssignProcessToJobObject(job, win.Handle(h)) })
	if err = errors.Join(err, assign); err == nil {
		err = resume(uint32(p.pid))
	}
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = win.CloseHandle(job)
		return fmt.Errorf("put into job object: %w", err)
	}
	it, _ := lookup(p.pid)
	p.started = it.started
	p.job.h = &job
	runtime.AddCleanup(p, func(h win.Handle) { _ = win.CloseHandle(h) }, job)
	return nil
}

// resume starts the threads of a process that was created suspended: there is one. os/exec keeps its handle to itself.
func resume(pid uint32) error {
	snap, err := win.CreateToolhelp32Snapshot(win.TH32CS_SNAPTHREAD, 0)
	if err != nil {
		return err
	}
	defer func() { _ = win.CloseHandle(snap) }()
	resumed := false
	entry := win.ThreadEntry32{Size: uint32(unsafe.Sizeof(win.ThreadEntry32{}))}
	for err = win.Thread32First(snap, &entry); err == nil; err = win.Thread32Next(snap, &entry) {
		if entry.OwnerProcessID != pid {
			continue
		}
		thread, err := win.OpenThread(win.THREAD_SUSPEND_RESUME, false, entry.ThreadID)
		if err != nil {
			return err
		}
		_, err = win.ResumeThread(thread)
		_ = win.CloseHandle(thread)
		if err != nil {
			return err
		}
		resumed = true
	}
	if !resumed {
		return errors.New("no thread to resume")
	}
	return nil
}

func signalOf(*os.ProcessState) string { return "" }

// leadsGroup is about Unix process groups; an adopted process is killed by its tree.
func leadsGroup(int) bool { return false }

// owns reports whether a process is in our child's job.
func (p *Process) owns(it process) bool {
	if p.job.h == nil {
		return false
	}
	h, err := win.OpenProcess(win.PROCESS_QUERY_INFORMATION, false, uint32(it.pid)) // Windows needs less, Wine does not
	if err != nil {
		if h, err = win.OpenProcess(win.PROCESS_QUERY_LIMITED_INFORMATION, false, uint32(it.pid)); err != nil {
			return false
		}
	}
	defer func() { _ = win.CloseHandle(h) }()
	var in int32
	r, _, _ := isProcessInJob().Call(uintptr(h), uintptr(*p.job.h), uintptr(unsafe.Pointer(&in)))
	return r != 0 && in != 0
}

func isProcessInJob() *win.LazyProc {
	return win.NewLazySystemDLL("kernel32.dll").NewProc("IsProcessInJob")
}

// terminate reports whether anybody was asked: who has no console, as a service, cannot ask.
func (p *Process) terminate(map[int]string) bool {
	return win.GenerateConsoleCtrlEvent(win.CTRL_BREAK_EVENT, uint32(p.pid)) == nil
}

func (p *Process) destroy(victims *tree) {
	if p.job.h != nil && victims.spare == nil {
		_ = win.TerminateJobObject(*p.job.h, 1)
	}
	for pid, started := range victims.of {
		killExact(process{pid: pid, started: started})
	}
}

func killExact(it process) bool {
	h, err := win.OpenProcess(win.PROCESS_TERMINATE|win.PROCESS_QUERY_LIMITED_INFORMATION, false, uint32(it.pid))
	if err != nil {
		return false
	}
	defer func() { _ = win.CloseHandle(h) }()
	if at, ok := created(h); !ok || strconv.FormatUint(at, 10) != it.started {
		return false
	}
	return win.TerminateProcess(h, 1) == nil
}

// created is the creation time in units of 100 ns.
func created(h win.Handle) (uint64, bool) {
	var creation, exit, kernel, user win.Filetime
	if err := win.GetProcessTimes(h, &creation, &exit, &kernel, &user); err != nil {
		return 0, false
	}
	return uint64(creation.HighDateTime)<<32 | uint64(creation.LowDateTime), true
}

// earlier allows for a minute by which the clock may have been set since.
func earlier(started string) bool {
	at, err := strconv.ParseUint(started, 10, 64)
	if err != nil {
		return false
	}
	file := win.Filetime{LowDateTime: uint32(at), HighDateTime: uint32(at >> 32)}
	return time.Unix(0, file.Nanoseconds()).Add(time.Minute).Before(time.Now().Add(-win.DurationSinceBoot()))
}

func lookup(pid int) (process, bool) {
	h, err := win.OpenProcess(win.PROCESS_QUERY_LIMITED_INFORMATION|win.SYNCHRONIZE, false, uint32(pid))
	if err != nil {
		return process{}, false
	}
	defer func() { _ = win.CloseHandle(h) }()
	it, ok := describe(h, pid)
	var basic win.PROCESS_BASIC_INFORMATION
	if win.NtQueryInformationProcess(h, win.ProcessBasicInformation, unsafe.Pointer(&basic), uint32(unsafe.Sizeof(basic)), nil) == nil {
		it.ppid = int(basic.InheritedFromUniqueProcessId)
	}
	return it, ok
}

func describe(h win.Handle, pid int) (process, bool) {
	at, ok := created(h)
	state, err := win.WaitForSingleObject(h, 0)
	return process{
		pid: pid, at: at, started: strconv.FormatUint(at, 10),
		zombie: err == nil && state == win.WAIT_OBJECT_0, // ended, but somebody holds a handle
	}, ok
}

func list() ([]process, error) {
	snap, err := win.CreateToolhelp32Snapshot(win.TH32CS_SNAPPROCESS, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = win.CloseHandle(snap) }()
	var all []process
	entry := win.ProcessEntry32{Size: uint32(unsafe.Sizeof(win.ProcessEntry32{}))}
	for err = win.Process32First(snap, &entry); err == nil; err = win.Process32Next(snap, &entry) {
		h, err := win.OpenProcess(win.PROCESS_QUERY_LIMITED_INFORMATION|win.SYNCHRONIZE, false, entry.ProcessID)
		if err != nil {
			continue // the system's own: nothing we could have started
		}
		it, ok := describe(h, int(entry.ProcessID))
		_ = win.CloseHandle(h)
		if ok {
			it.ppid = int(entry.ParentProcessID)
			all = append(all, it)
		}
	}
	if !errors.Is(err, win.ERROR_NO_MORE_FILES) {
		return nil, err
	}
	return all, nil
}

// environ reads the environment block of another process of our own word size.
func environ(pid int) (map[string]string, error) {
	h, err := win.OpenProcess(win.PROCESS_QUERY_INFORMATION|win.PROCESS_VM_READ, false, uint32(pid))
	if err != nil {
		return nil, err
	}
	defer func() { _ = win.CloseHandle(h) }()
	var basic win.PROCESS_BASIC_INFORMATION
	if err := win.NtQueryInformationProcess(h, win.ProcessBasicInformation, unsafe.Pointer(&basic), uint32(unsafe.Sizeof(basic)), nil); err != nil {
		return nil, err
	}
	var peb win.PEB
	if err := readMemory(h, uintptr(unsafe.Pointer(basic.PebBaseAddress)), unsafe.Pointer(&peb), unsafe.Sizeof(peb)); err != nil {
		return nil, err
	}
	var params win.RTL_USER_PROCESS_PARAMETERS
	if err := readMemory(h, uintptr(unsafe.Pointer(peb.ProcessParameters)), unsafe.Pointer(&params), unsafe.Sizeof(params)); err != nil {
		return nil, err
	}
	size := min(params.EnvironmentSize, maxEnv) / 2
	if size == 0 {
		return nil, nil
	}
	block := make([]uint16, size)
	if err := readMemory(h, uintptr(params.Environment), unsafe.Pointer(&block[0]), size*2); err != nil {
		return nil, err
	}
	return parseUTF16Environ(block), nil
}

func readMemory(h win.Handle, from uintptr, to unsafe.Pointer, size uintptr) error {
	return win.ReadProcessMemory(h, from, (*byte)(to), size, nil)
}

func arguments(int) []string { return nil }

func waitFor(ctx context.Context, pid int, started string) error {
	h, err := win.OpenProcess(win.SYNCHRONIZE|win.PROCESS_QUERY_LIMITED_INFORMATION, false, uint32(pid))
	if err != nil {
		return poll(ctx, pid, started)
	}
	defer func() { _ = win.CloseHandle(h) }()
	if at, ok := created(h); !ok || strconv.FormatUint(at, 10) != started {
		return nil
	}
	event, err := win.CreateEvent(nil, 1, 0, nil)
	if err != nil {
		return poll(ctx, pid, started)
	}
	set := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { defer close(set); _ = win.SetEvent(event) })
	defer func() {
		if !stop() {
			<-set
		}
		_ = win.CloseHandle(event)
	}()
	which, err := win.WaitForMultipleObjects([]win.Handle{h, event}, false, win.INFINITE)
	switch {
	case err != nil:
		return poll(ctx, pid, started)
	case which == win.WAIT_OBJECT_0:
		return nil
	}
	return context.Cause(ctx)
}
