package host

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDetectOSUsesTheNamesOfTheProtocol(t *testing.T) {
	for goos, want := range map[string]string{"linux": "linux", "windows": "windows", "darwin": "macos", "freebsd": "other"} {
		if got := DetectOS(goos); got != want {
			t.Errorf("DetectOS(%s) = %q, want %q", goos, got, want)
		}
	}
}

func TestNameAndOSVersionAreOneLine(t *testing.T) {
	for what, s := range map[string]string{"name": Name(), "os version": OSVersion()} {
		if s == "" || strings.ContainsAny(s, "\r\n\x00") {
			t.Errorf("%s = %q", what, s)
		}
	}
}

func TestPrettyName(t *testing.T) {
	for file, want := range map[string]string{
		"NAME=\"Debian GNU/Linux\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n": "Debian GNU/Linux 12 (bookworm)",
		"PRETTY_NAME='Alpine Linux v3.20'\r\n":                                        "Alpine Linux v3.20",
		"NAME=Void\n# VERSION=no\nVERSION=1":                                          "Void 1",
		"PRETTY_NAME=\"a \\\"b\\\" \\$c\"":                                            `a "b" $c`,
		"":                                                                            "",
		"garbage":                                                                     "",
	} {
		if got := prettyName(file); got != want {
			t.Errorf("prettyName(%q) = %q, want %q", file, got, want)
		}
	}
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func TestPickFollowsTheProtocol(t *testing.T) {
	eth0 := link{name: "eth0", hardware: true, up: true, addrs: addrs("10.1.2.3", "fe80::1")}
	eth1 := link{name: "eth1", hardware: true, up: true, addrs: addrs("192.168.7.9")}
	docker := link{name: "docker0", hardware: true, up: true, addrs: addrs("172.17.0.1")}
	bare := link{name: "ppp0", up: true, addrs: addrs("100.64.0.9")}
	down := link{name: "eth9", hardware: true, addrs: addrs("10.9.9.9")}
	odd := link{name: "eth2", hardware: true, up: true, addrs: addrs("169.254.3.4", "127.0.0.2", "224.0.0.1", "0.0.0.0", "2001:db8::1")}
	for name, c := range map[string]struct {
		out    string
		links  []link
		ignore []string
		want   string
	}{
		"the outgoing one":                        {"192.168.7.9", []link{eth0, eth1}, nil, "192.168.7.9"},
		"else the first real one":                 {"127.0.0.1", []link{odd, docker, eth0, eth1}, nil, "10.1.2.3"},
		"an ignored address is not reported":      {"10.1.2.3", []link{eth0, eth1}, []string{"10.1.2.3"}, "192.168.7.9"},
		"nor one of an ignored range":             {"10.1.2.3", []link{eth0, eth1}, []string{" 10.0.0.0/8 "}, "192.168.7.9"},
		"a range need not begin at its border":    {"10.1.2.3", []link{eth0, eth1}, []string{"10.1.2.200/24"}, "192.168.7.9"},
		"nonsense in the list is skipped":         {"10.1.2.3", []link{eth0}, []string{"x", "", "::1"}, "10.1.2.3"},
		"a container bridge when it is the way":   {"172.17.0.1", []link{docker, eth0}, nil, "172.17.0.1"},
		"but not otherwise":                       {"", []link{docker}, nil, "127.0.0.1"},
		"no hardware address: only as outgoing":   {"100.64.0.9", []link{bare}, nil, "100.64.0.9"},
		"an interface that is down":               {"", []link{down}, nil, "127.0.0.1"},
		"all ignored: the outgoing one after all": {"10.1.2.3", []link{eth0}, []string{"10.1.2.3"}, "10.1.2.3"},
		"nothing at all":                          {"", nil, nil, "127.0.0.1"},
		"an IPv6 way is no answer":                {"2001:db8::1", []link{odd}, nil, "127.0.0.1"},
	} {
		var out netip.Addr
		if c.out != "" {
			out = netip.MustParseAddr(c.out)
		}
		if got := pick(out, c.links, c.ignore); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestVirtualInterfacesAreKnownByName(t *testing.T) {
	for _, name := range []string{"docker0", "veth12ab", "br-0a1b", "virbr0", "cni0", "flannel.1", "vmnet8", "vboxnet0", "utun3", "vEthernet (WSL)"} {
		if !virtual(name) {
			t.Errorf("%s counts as real", name)
		}
	}
	for _, name := range []string{"eth0", "ens192", "enp3s0", "br0", "bond0", "en0", "wlan0", "Ethernet"} {
		if virtual(name) {
			t.Errorf("%s counts as virtual", name)
		}
	}
}

func TestIPNeedsNoTimeForAnAddress(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	began := time.Now()
	ip := IP(ctx, "http://127.0.0.1:8080/x", nil)
	if net.ParseIP(ip).To4() == nil {
		t.Errorf("IP = %q", ip)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("took %v", took)
	}
}

func TestIPIsNotHeldUpByNames(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // the resolver has no time at all
	if ip := IP(ctx, "https://devops.example.invalid", nil); net.ParseIP(ip).To4() == nil {
		t.Errorf("IP = %q", ip)
	}
}

func TestHostPort(t *testing.T) {
	for gateway, want := range map[string]string{
		"devops.example.com": "devops.example.com:80", "https://h:8443/a": "h:8443", "http://10.0.0.1": "10.0.0.1:80",
		"http://%zz": "",
	} {
		if got := hostPort(gateway); got != want {
			t.Errorf("hostPort(%q) = %q, want %q", gateway, got, want)
		}
	}
}
