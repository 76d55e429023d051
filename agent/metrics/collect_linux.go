package metrics

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
)

// maxSockets bounds how far the tables of sockets are read: 8 MiB are about 50,000 connections. Beyond that, the
// counts are of those.
const maxSockets = 8 << 20

// sockets counts sockets by state. gopsutil would look up the owner of each one, through all of /proc/*/fd.
func sockets(_ context.Context, s *sample) error {
	fields := socketFields()
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
		f, err := os.Open("/proc/net/" + table)
		if errors.Is(err, os.ErrNotExist) { // no IPv6
			continue
		}
		if err != nil {
			return err
		}
		countSockets(io.LimitReader(f, maxSockets), strings.HasPrefix(table, "udp"), fields)
		_ = f.Close()
	}
	s.add("netstat", fields)
	return nil
}

// countSockets reads a table of /proc/net: a heading, then lines whose fourth word is the state in hexadecimal.
func countSockets(table io.Reader, udp bool, fields map[string]any) {
	states := []string{"tcp_none", "tcp_established", "tcp_syn_sent", "tcp_syn_recv", "tcp_fin_wait1", "tcp_fin_wait2",
		"tcp_time_wait", "tcp_close", "tcp_close_wait", "tcp_last_ack", "tcp_listen", "tcp_closing"}
	var counts [16]int64
	lines := bufio.NewScanner(table)
	for first := true; lines.Scan(); first = false {
		if first {
			continue
		}
		words := bytes.Fields(lines.Bytes())
		if len(words) < 4 {
			continue
		}
		state, err := strconv.ParseUint(string(words[3]), 16, 8)
		switch {
		case udp:
			counts[0]++
		case err == nil && state < uint64(len(counts)):
			counts[state]++
		}
	}
	if udp {
		fields["udp_socket"] = fields["udp_socket"].(int64) + counts[0]
		return
	}
	for state, name := range states {
		fields[name] = fields[name].(int64) + counts[state]
	}
	fields["tcp_syn_recv"] = fields["tcp_syn_recv"].(int64) + counts[12] // NEW_SYN_RECV
}

// kernel reads two measurements from a few lines. Processes are counted by the names in /proc and by what the kernel
// sums up itself; telegraf's counts by state (sleeping, zombies, …) would need every process to be looked at.
func kernel(_ context.Context, s *sample) error {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return err
	}
	fields, processes := kernelFields(stat)
	if entropy, err := os.ReadFile("/proc/sys/kernel/random/entropy_avail"); err == nil {
		if n, err := strconv.ParseInt(strings.TrimSpace(string(entropy)), 10, 64); err == nil {
			fields["entropy_avail"] = n
		}
	}
	s.add("kernel", fields)

	if avg, err := os.ReadFile("/proc/loadavg"); err == nil {
		if words := strings.Fields(string(avg)); len(words) > 3 {
			_, threads, _ := strings.Cut(words[3], "/")
			if n, err := strconv.ParseInt(threads, 10, 64); err == nil {
				processes["total_threads"] = n
			}
		}
	}
	proc, err := os.Open("/proc")
	if err != nil {
		return err
	}
	names, err := proc.Readdirnames(-1)
	_ = proc.Close()
	if err != nil {
		return err
	}
	var total int64
	for _, name := range names {
		if name[0] >= '1' && name[0] <= '9' {
			total++
		}
	}
	processes["total"] = total
	s.add("processes", processes)
	return nil
}

// kernelFields reads /proc/stat.
func kernelFields(stat []byte) (kernel, processes map[string]any) {
	kernel, processes = map[string]any{}, map[string]any{}
	for line := range bytes.Lines(stat) {
		words := bytes.Fields(line[:min(len(line), 200)]) // intr is very long, and only its first number matters
		if len(words) < 2 {
			continue
		}
		n, err := strconv.ParseInt(string(words[1]), 10, 64)
		if err != nil {
			continue
		}
		switch string(words[0]) {
		case "intr":
			kernel["interrupts"] = n
		case "ctxt":
			kernel["context_switches"] = n
		case "btime":
			kernel["boot_time"] = n
		case "processes":
			kernel["processes_forked"] = n
		case "procs_running":
			processes["running"] = n
		case "procs_blocked":
			processes["blocked"] = n
		}
	}
	return kernel, processes
}
