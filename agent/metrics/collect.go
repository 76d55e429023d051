package metrics

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/disk"
	"github.com/shirou/gopsutil/v4/host"
	"github.com/shirou/gopsutil/v4/load"
	"github.com/shirou/gopsutil/v4/mem"
	"github.com/shirou/gopsutil/v4/net"
)

// Period is how often a sample is sent (protocol §1.6.13).
const Period = time.Minute

// Limits on one sample, for machines with very many of something.
const (
	maxCPUs    = 64 // reported one by one, besides the total
	maxDisks   = 64
	maxDevices = 64
	maxLinks   = 64
)

// About says whose measurements they are; every one carries it as tags. There is no field for a secret.
type About struct {
	Project, Agent, HostName, HostIP string
}

func (a About) tags() map[string]string {
	return map[string]string{"projectId": a.Project, "agentId": a.Agent, "hostName": a.HostName, "hostIp": a.HostIP}
}

// Collector takes samples. It remembers the processor times of the last one, because usage is a difference.
type Collector struct {
	goos string

	mu   sync.Mutex
	last map[string]cpu.TimesStat // by processor
}

// NewCollector makes a collector. Its first sample has no processor usage yet.
func NewCollector() *Collector { return &Collector{goos: runtime.GOOS} }

// Collect takes one sample: cpu, mem, swap, disk, diskio, net, netstat, kernel, processes and system, as far as the
// system tells them without a program being started: macOS has no net, netstat, kernel and processes, Windows no
// kernel, processes and load. What cannot be read is named in the error; the rest is returned all the same.
func (c *Collector) Collect(ctx context.Context, now time.Time, about About) ([]Metric, error) {
	s := &sample{now: now, about: about}
	for _, part := range []struct {
		name string
		read func(context.Context, *sample) error
	}{
		{"cpu", c.cpu}, {"mem", memory}, {"swap", swap}, {"disk", disks}, {"diskio", devices}, {"net", c.links},
		{"netstat", sockets}, {"kernel and processes", kernel}, {"system", c.system},
	} {
		if ctx.Err() != nil {
			return s.metrics, errors.Join(append(s.errs, context.Cause(ctx))...)
		}
		if err := part.read(ctx, s); err != nil {
			s.errs = append(s.errs, fmt.Errorf("measure %s: %w", part.name, err))
		}
	}
	return s.metrics, errors.Join(s.errs...)
}

type sample struct {
	now     time.Time
	about   About
	metrics []Metric
	errs    []error
}

// add appends a measurement; tags are pairs of names and values.
func (s *sample) add(name string, fields map[string]any, tags ...string) {
	all := s.about.tags()
	for i := 0; i+1 < len(tags); i += 2 {
		all[tags[i]] = tags[i+1]
	}
	s.metrics = append(s.metrics, Metric{Name: name, Time: s.now, Tags: all, Fields: fields})
}

func (c *Collector) cpu(ctx context.Context, s *sample) error {
	total, err := cpu.TimesWithContext(ctx, false)
	if err != nil {
		return err
	}
	each, err := cpu.TimesWithContext(ctx, true)
	if err != nil {
		each = nil // the total is what matters
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	times := map[string]cpu.TimesStat{}
	for i, t := range append(total, each[:min(len(each), maxCPUs)]...) {
		if i == 0 {
			t.CPU = "cpu-total"
		}
		times[t.CPU] = t
		if before, ok := c.last[t.CPU]; ok {
			if fields := usage(before, t); fields != nil {
				s.add("cpu", fields, "cpu", t.CPU)
			}
		}
	}
	c.last = times
	return nil
}

// usage turns two readings into percent, nil when no time has passed or the counters went back.
func usage(from, to cpu.TimesStat) map[string]any {
	// The kernel counts guest time in user and nice as well.
	sum := func(t cpu.TimesStat) float64 {
		return t.User + t.System + t.Nice + t.Iowait + t.Irq + t.Softirq + t.Steal + t.Idle
	}
	passed := sum(to) - sum(from)
	if passed <= 0 {
		return nil
	}
	percent := func(from, to float64) float64 { return min(100, max(0, 100*(to-from)/passed)) }
	return map[string]any{
		"usage_user":       percent(from.User-from.Guest, to.User-to.Guest),
		"usage_system":     percent(from.System, to.System),
		"usage_idle":       percent(from.Idle, to.Idle),
		"usage_nice":       percent(from.Nice-from.GuestNice, to.Nice-to.GuestNice),
		"usage_iowait":     percent(from.Iowait, to.Iowait),
		"usage_irq":        percent(from.Irq, to.Irq),
		"usage_softirq":    percent(from.Softirq, to.Softirq),
		"usage_steal":      percent(from.Steal, to.Steal),
		"usage_guest":      percent(from.Guest, to.Guest),
		"usage_guest_nice": percent(from.GuestNice, to.GuestNice),
	}
}

func memory(ctx context.Context, s *sample) error {
	m, err := mem.VirtualMemoryWithContext(ctx)
	if err != nil {
		return err
	}
	s.add("mem", map[string]any{
		"total": m.Total, "available": m.Available, "used": m.Used, "free": m.Free, "active": m.Active, "inactive": m.Inactive,
		"buffered": m.Buffers, "cached": m.Cached, "slab": m.Slab, "shared": m.Shared,
		"used_percent": ratio(m.Used, m.Total), "available_percent": ratio(m.Available, m.Total),
	})
	return nil
}

func ratio(part, whole uint64) float64 {
	if whole == 0 {
		return 0
	}
	return 100 * float64(part) / float64(whole)
}

func swap(ctx context.Context, s *sample) error {
	m, err := mem.SwapMemoryWithContext(ctx)
	if err != nil {
		return err
	}
	s.add("swap", map[string]any{"total": m.Total, "used": m.Used, "free": m.Free, "used_percent": ratio(m.Used, m.Total),
		"in": m.Sin, "out": m.Sout})
	return nil
}

// disks reads the file systems on local devices, and the root whatever it is on. A network file system is not
// touched: asking a dead one for its size never returns.
func disks(ctx context.Context, s *sample) error {
	partitions, err := disk.PartitionsWithContext(ctx, false)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(partitions, func(p disk.PartitionStat) bool { return p.Mountpoint == "/" }) && runtime.GOOS != "windows" {
		partitions = append(partitions, disk.PartitionStat{Mountpoint: "/"}) // of a container
	}
	known := map[string]bool{}
	for _, p := range partitions {
		if len(known) == maxDisks {
			break
		}
		if p.Device != "" && known[p.Device] { // mounted again elsewhere
			continue
		}
		switch p.Fstype {
		case "squashfs", "iso9660", "udf", "tmpfs", "devtmpfs", "devfs", "autofs": // always full, or not a disk
			continue
		}
		u, err := disk.UsageWithContext(ctx, p.Mountpoint)
		if err != nil || u.Total == 0 { // a drive without a disk in it, or a place we may not look at
			continue
		}
		known[p.Device] = true
		fstype := p.Fstype
		if fstype == "" {
			fstype = u.Fstype
		}
		mode := "rw"
		if slices.Contains(p.Opts, "ro") {
			mode = "ro"
		}
		s.add("disk", map[string]any{
			"total": u.Total, "free": u.Free, "used": u.Used, "used_percent": u.UsedPercent,
			"inodes_total": u.InodesTotal, "inodes_free": u.InodesFree, "inodes_used": u.InodesUsed,
			"inodes_used_percent": u.InodesUsedPercent,
		}, "path", p.Mountpoint, "device", strings.TrimPrefix(p.Device, "/dev/"), "fstype", fstype, "mode", mode)
	}
	return nil
}

func devices(ctx context.Context, s *sample) error {
	counters, err := disk.IOCountersWithContext(ctx)
	if err != nil {
		return err
	}
	n := 0
	for _, name := range sortedKeys(counters) {
		if strings.HasPrefix(name, "loop") || strings.HasPrefix(name, "ram") || n == maxDevices {
			continue
		}
		n++
		d := counters[name]
		s.add("diskio", map[string]any{
			"reads": d.ReadCount, "writes": d.WriteCount, "read_bytes": d.ReadBytes, "write_bytes": d.WriteBytes,
			"read_time": d.ReadTime, "write_time": d.WriteTime, "io_time": d.IoTime, "weighted_io_time": d.WeightedIO,
			"iops_in_progress": d.IopsInProgress, "merged_reads": d.MergedReadCount, "merged_writes": d.MergedWriteCount,
		}, "name", name)
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

func (c *Collector) links(ctx context.Context, s *sample) error {
	if c.goos == "darwin" { // gopsutil would start netstat
		return nil
	}
	counters, err := net.IOCountersWithContext(ctx, true)
	if err != nil {
		return err
	}
	n := 0
	for _, l := range counters {
		if l.Name == "lo" || strings.HasPrefix(l.Name, "veth") || strings.HasPrefix(l.Name, "Loopback") || n == maxLinks {
			continue
		}
		n++
		s.add("net", map[string]any{
			"bytes_sent": l.BytesSent, "bytes_recv": l.BytesRecv, "packets_sent": l.PacketsSent, "packets_recv": l.PacketsRecv,
			"err_in": l.Errin, "err_out": l.Errout, "drop_in": l.Dropin, "drop_out": l.Dropout,
		}, "interface", l.Name)
	}
	return nil
}

// system leaves telegraf's n_users out: since utmp is gone, gopsutil starts loginctl to count them.
func (c *Collector) system(ctx context.Context, s *sample) error {
	fields := map[string]any{"n_cpus": int64(runtime.NumCPU())}
	uptime, err := host.UptimeWithContext(ctx)
	if err == nil {
		fields["uptime"] = uptime
	}
	if c.goos != "windows" { // there, gopsutil would leave a goroutine running for ever
		avg, lerr := load.AvgWithContext(ctx)
		if lerr == nil {
			fields["load1"], fields["load5"], fields["load15"] = avg.Load1, avg.Load5, avg.Load15
		}
		err = errors.Join(err, lerr)
	}
	s.add("system", fields)
	return err
}

// socketFields names telegraf's netstat fields for the states of TCP, all of them zero.
func socketFields() map[string]any {
	fields := map[string]any{}
	for _, name := range []string{"tcp_established", "tcp_syn_sent", "tcp_syn_recv", "tcp_fin_wait1", "tcp_fin_wait2",
		"tcp_time_wait", "tcp_close", "tcp_close_wait", "tcp_last_ack", "tcp_listen", "tcp_closing", "tcp_none", "udp_socket"} {
		fields[name] = int64(0)
	}
	return fields
}
