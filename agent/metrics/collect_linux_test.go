package metrics

import (
	"reflect"
	"strings"
	"testing"
)

func TestCountSockets(t *testing.T) {
	const heading = "  sl  local_address rem_address   st tx_queue rx_queue\n"
	fields := socketFields()
	countSockets(strings.NewReader(heading+
		"   0: 0100007F:0CEA 00000000:0000 0A 0:0\n   1: 0100007F:0CEA 00000000:0000 01 0:0\n   2: a b 01 c\n   3: a b 06 c\n   4: a b 0C c\n   5: a b ZZ c\n   6: a\n"), false, fields)
	countSockets(strings.NewReader(heading+"  9: a b 07 c\n 10: a b 07 c\n"), true, fields)
	want := socketFields()
	want["tcp_listen"], want["tcp_established"], want["tcp_time_wait"], want["tcp_syn_recv"] = int64(1), int64(2), int64(1), int64(1)
	want["udp_socket"] = int64(2)
	if !reflect.DeepEqual(fields, want) {
		t.Errorf("%v", fields)
	}
}

func TestKernelFields(t *testing.T) {
	kernel, processes := kernelFields([]byte("cpu  1 2 3\nintr 77" + strings.Repeat(" 0", 5000) + "\nctxt 88\nbtime 99\nprocesses 11\nprocs_running 2\nprocs_blocked 1\nx\n"))
	if want := map[string]any{"interrupts": int64(77), "context_switches": int64(88), "boot_time": int64(99), "processes_forked": int64(11)}; !reflect.DeepEqual(kernel, want) {
		t.Errorf("kernel %v", kernel)
	}
	if want := map[string]any{"running": int64(2), "blocked": int64(1)}; !reflect.DeepEqual(processes, want) {
		t.Errorf("processes %v", processes)
	}
}
