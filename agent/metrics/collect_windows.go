package metrics

import (
	"context"
	"strings"

	"github.com/shirou/gopsutil/v4/net"
)

// maxSockets bounds the table of sockets.
const maxSockets = 20000

func sockets(ctx context.Context, s *sample) error {
	list, err := net.ConnectionsMaxWithContext(ctx, "inet", maxSockets)
	if err != nil {
		return err
	}
	fields := socketFields()
	for _, c := range list {
		name := "udp_socket"
		if c.Type == 1 { // SOCK_STREAM
			name = "tcp_" + strings.ToLower(c.Status)
		}
		if n, ok := fields[name].(int64); ok {
			fields[name] = n + 1
		}
	}
	s.add("netstat", fields)
	return nil
}

// kernel has nothing to say here: telegraf has neither measurement on Windows.
func kernel(context.Context, *sample) error { return nil }
