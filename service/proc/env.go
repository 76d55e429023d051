package proc

import (
	"bytes"
	"encoding/binary"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
	"unicode/utf16"
)

// maxEnv bounds what is read of another process's environment.
const maxEnv = 4 << 20

// KillByEnv kills, without asking first, every process whose environment has all the wanted values (protocol
// §6.6): names as they are (any case on Windows), values in any case. A process is left alone when it is this
// one, one of except, or when spare, called with its environment, says so; spare may be nil.
// It looks again until it finds nothing new, because a process may fork while we look.
//
// Linux reads /proc, macOS asks kern.procargs2, Windows reads the environment block in the other process. All
// three show the environment a process was started with, and only for processes that we may look at: those of our
// account, or all for root and administrators. The pids that were killed are returned also with an error; they are gone
// then, unless one takes longer to die than two seconds.
func KillByEnv(want map[string]string, spare func(env map[string]string) bool, except ...int) (killed []int, err error) {
	if len(want) == 0 {
		return nil, nil // everything would match
	}
	seen := map[int]string{}
	for range 20 {
		all, err := list()
		if err != nil {
			return killed, err
		}
		found := false
		for _, it := range all {
			if it.zombie || it.pid == os.Getpid() || slices.Contains(except, it.pid) || seen[it.pid] == it.started {
				continue
			}
			env, err := environ(it.pid)
			if err != nil || !matches(env, want, runtime.GOOS == "windows") || spare != nil && spare(env) {
				continue
			}
			if killExact(it) {
				killed = append(killed, it.pid)
			}
			seen[it.pid], found = it.started, true
		}
		if !found {
			break
		}
	}
	for deadline := time.Now().Add(killPatience); time.Now().Before(deadline); { // a kill is a wish until the victim runs again
		if !slices.ContainsFunc(killed, func(pid int) bool { return Alive(pid, seen[pid]) }) {
			break
		}
		<-time.After(2 * time.Millisecond)
	}
	return killed, nil
}

// FindByArg finds a running process that was started with exactly this argument, and how to tell it from a later one
// with its pid. Windows does not tell the arguments of others: nothing is found there.
func FindByArg(arg string) (pid int, started string, ok bool) {
	all, err := list()
	if err != nil {
		return 0, "", false
	}
	for _, it := range all {
		if it.zombie || it.pid == os.Getpid() {
			continue
		}
		if slices.Contains(arguments(it.pid), arg) {
			return it.pid, it.started, true
		}
	}
	return 0, "", false
}

// matches reports whether env has all wanted values.
func matches(env, want map[string]string, anyName bool) bool {
	for name, value := range want {
		got, ok := env[name]
		if !ok && anyName {
			for other, v := range env {
				if strings.EqualFold(other, name) {
					got, ok = v, true
					break
				}
			}
		}
		if !ok || !strings.EqualFold(got, value) {
			return false
		}
	}
	return true
}

// parseEnviron reads "KEY=value" items that each end with a NUL. The first of two equal names counts, as getenv does.
func parseEnviron(block []byte) map[string]string {
	env := map[string]string{}
	for item := range bytes.SplitSeq(block, []byte{0}) {
		addEnv(env, string(item))
	}
	return env
}

func addEnv(env map[string]string, item string) {
	// Windows has names that begin with "=", as in "=C:=C:\dir".
	i := strings.IndexByte(item, '=')
	if i <= 0 {
		return
	}
	if _, twice := env[item[:i]]; !twice {
		env[item[:i]] = item[i+1:]
	}
}

// parseProcArgs reads what macOS answers for kern.procargs2: the number of arguments as an int32, the path of the
// program, NULs up to a word boundary, that many arguments, and then the environment, up to an empty text.
func parseProcArgs(raw []byte) (args []string, env map[string]string, ok bool) {
	if len(raw) < 4 {
		return nil, nil, false
	}
	count := int32(binary.NativeEndian.Uint32(raw))
	if count < 0 || int64(count) > int64(len(raw)) {
		return nil, nil, false
	}
	rest := raw[4:]
	end := bytes.IndexByte(rest, 0)
	if end < 0 {
		return nil, nil, false
	}
	rest = bytes.TrimLeft(rest[end:], "\x00")
	for range count {
		end := bytes.IndexByte(rest, 0)
		if end < 0 {
			return nil, nil, false
		}
		args = append(args, string(rest[:end]))
		rest = rest[end+1:]
	}
	if end := bytes.Index(rest, []byte{0, 0}); end >= 0 {
		rest = rest[:end]
	}
	return args, parseEnviron(rest), true
}

// parseUTF16Environ reads a Windows environment block: UTF-16 texts that each end with a NUL, up to an empty one.
func parseUTF16Environ(block []uint16) map[string]string {
	env := map[string]string{}
	for len(block) > 0 {
		end := slices.Index(block, 0)
		if end < 0 {
			end = len(block)
		}
		if end == 0 {
			break
		}
		addEnv(env, string(utf16.Decode(block[:end])))
		block = block[min(end+1, len(block)):]
	}
	return env
}
