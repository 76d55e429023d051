package config

import (
	"net/http"
	"strings"
	"testing"
)

func TestProxyTakesTheFirstThatHasOne(t *testing.T) {
	for _, key := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"} {
		t.Setenv(key, "")
	}
	t.Setenv("https_proxy", "http://environment:1")
	toml := &Config{Proxy: Proxies{HTTPS: "http://toml:1"}}
	settings := Settings{HTTPSProxy: "http://persisted:1"}
	for _, c := range []struct {
		cfg      *Config
		settings Settings
		envs     map[string]string
		target   string
		want     string
	}{
		{nil, Settings{}, nil, "https://server/", "http://environment:1"},
		{nil, settings, nil, "https://server/", "http://persisted:1"},
		{nil, settings, map[string]string{"https_proxy": "http://pushed:1"}, "https://server/", "http://pushed:1"},
		{nil, settings, map[string]string{"https_proxy": "http://lower:1", "HTTPS_PROXY": "upper:1"}, "https://server/", "http://upper:1"},
		{nil, settings, map[string]string{"https_proxy": "http://lower:1", "HTTPS_PROXY": " "}, "https://server/", "http://lower:1"},
		{toml, settings, map[string]string{"https_proxy": "http://pushed:1"}, "https://server/", "http://toml:1"},
		{toml, settings, nil, "http://server/", ""},
		{toml, settings, map[string]string{"no_proxy": ".example.com"}, "https://a.example.com/", ""},
		{toml, Settings{NoProxy: "10.0.0.0/8"}, nil, "https://10.2.3.4/", ""},
		{&Config{Proxy: Proxies{NoProxy: "*"}}, settings, nil, "https://server/", ""},
		{toml, settings, nil, "https://127.0.0.1/", ""},
	} {
		req, err := http.NewRequest(http.MethodGet, c.target, nil)
		if err != nil {
			t.Fatal(err)
		}
		u, err := Proxy(c.cfg, c.settings, c.envs)(req)
		got := ""
		if u != nil {
			got = u.String()
		}
		if err != nil || got != c.want {
			t.Errorf("%+v: %q, %v; want %q", c, got, err, c.want)
		}
	}
}

func TestAProxyThatIsNoneDoesNotPrintItsLogin(t *testing.T) {
	t.Setenv("HTTP_PROXY", "")
	req, err := http.NewRequest(http.MethodGet, "http://server/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if u, err := Proxy(nil, Settings{}, map[string]string{"HTTP_PROXY": "http://me:hush@x:port"})(req); u == nil && (err == nil || strings.Contains(err.Error(), "hush")) {
		t.Errorf("%v, %v", u, err)
	}
}
