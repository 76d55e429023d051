package host

import (
	"context"
	"net"
	"net/netip"
	"net/url"
	"strings"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// loopback is reported when no address was found (protocol §1.6.3).
const loopback = "127.0.0.1"

// IP returns the IPv4 address that this machine reports (protocol §3.3). ignore holds addresses and CIDR ranges.
// The gateway's name is looked up for no longer than ctx lives; without an answer, the address on the way to the
// default gateway serves. So give it 50 ms at the start and ask again later.
func IP(ctx context.Context, gateway string, ignore []string) string {
	outgoing := outgoing(ctx, gateway)
	interfaces, _ := interfaces() // without a list, the outgoing address is still good
	return pick(outgoing, interfaces, ignore)
}

// outgoing learns the address that packets to the gateway leave from. "Connecting" a UDP socket sends nothing.
func outgoing(ctx context.Context, gateway string) netip.Addr {
	for _, target := range []string{hostPort(gateway), "192.0.2.1:9"} { // the latter is TEST-NET-1, RFC 5737
		if target == "" {
			continue
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "udp4", target)
		if err != nil {
			ctx = context.WithoutCancel(ctx) // the second target needs no name server, so no time limit either
			continue
		}
		local, _ := conn.LocalAddr().(*net.UDPAddr)
		_ = conn.Close()
		if local != nil {
			return local.AddrPort().Addr().Unmap()
		}
	}
	return netip.Addr{}
}

func hostPort(gateway string) string {
	u, err := url.Parse(wire.BaseURL(gateway))
	if err != nil || u.Hostname() == "" {
		return ""
	}
	port := u.Port()
	if port == "" {
		port = "80"
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// link is what pick needs to know of a network interface.
type link struct {
	name     string
	hardware bool // it has a hardware address
	up       bool
	addrs    []netip.Addr
}

func interfaces() ([]link, error) {
	list, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var links []link
	for _, i := range list {
		if i.Flags&net.FlagLoopback != 0 {
			continue
		}
		l := link{name: i.Name, hardware: len(i.HardwareAddr) > 0, up: i.Flags&net.FlagUp != 0}
		addrs, err := i.Addrs()
		if err != nil {
			continue // it went away in the meantime
		}
		for _, a := range addrs {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil {
				l.addrs = append(l.addrs, prefix.Addr().Unmap())
			}
		}
		links = append(links, l)
	}
	return links, nil
}

// pick chooses the address to report: the outgoing one if a real interface has it, else the first of a real
// interface, else the outgoing one, else 127.0.0.1 (protocol §3.3). Interfaces of containers and virtual machines
// do not count, unless the outgoing address is theirs.
func pick(outgoing netip.Addr, links []link, ignore []string) string {
	ignored := ignoring(ignore)
	var first netip.Addr
	for _, l := range links {
		if !l.hardware || !l.up {
			continue
		}
		for _, a := range l.addrs {
			if !a.Is4() || a.IsLoopback() || a.IsLinkLocalUnicast() || !a.IsGlobalUnicast() || ignored(a) {
				continue
			}
			if a == outgoing {
				return a.String()
			}
			if !first.IsValid() && !virtual(l.name) {
				first = a
			}
		}
	}
	switch {
	case first.IsValid():
		return first.String()
	case outgoing.Is4() && !outgoing.IsUnspecified():
		return outgoing.String()
	}
	return loopback
}

// ignoring turns a list of addresses and ranges into a test. What is neither is skipped: package config checks them.
func ignoring(list []string) func(netip.Addr) bool {
	var ranges []netip.Prefix
	for _, item := range list {
		item = strings.TrimSpace(item)
		if p, err := netip.ParsePrefix(item); err == nil {
			ranges = append(ranges, p.Masked())
		} else if a, err := netip.ParseAddr(item); err == nil {
			a = a.Unmap()
			ranges = append(ranges, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return func(a netip.Addr) bool {
		for _, p := range ranges {
			if p.Contains(a) {
				return true
			}
		}
		return false
	}
}

// virtual reports whether an interface belongs to containers, virtual machines or tunnels, by its name.
func virtual(name string) bool {
	name = strings.ToLower(name)
	for _, prefix := range []string{"docker", "veth", "br-", "virbr", "cni", "flannel", "cali", "cilium", "kube-", "podman",
		"lxcbr", "lxdbr", "lxc", "vnet", "vmnet", "vboxnet", "vethernet", "tun", "tap", "utun", "tailscale", "wg", "bridge", "awdl", "llw"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}
