package config

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"

	"golang.org/x/net/http/httpproxy"
)

// Proxy returns the proxy function for an HTTP transport. Each of the three values is taken from the first place
// that has it: agent.toml, the variables pushed by the server (either letter case), .agent.properties, the
// environment of the process (protocol §1.5, except that agent.toml is new and that a persisted value goes before
// the environment: it is what the server pushed last). Call it again when one of them has changed.
func Proxy(cfg *Config, settings Settings, envs map[string]string) func(*http.Request) (*url.URL, error) {
	if cfg == nil {
		cfg = &Config{}
	}
	first := func(key, operator, persisted string) string {
		for _, val := range []string{operator, lookupEither(envs, key), persisted, os.Getenv(key), os.Getenv(strings.ToLower(key))} {
			if val = strings.TrimSpace(val); val != "" {
				return val
			}
		}
		return ""
	}
	proxies := &httpproxy.Config{
		HTTPProxy:  first(KeyHTTPProxy, string(cfg.Proxy.HTTP), string(settings.HTTPProxy)),
		HTTPSProxy: first(KeyHTTPSProxy, string(cfg.Proxy.HTTPS), string(settings.HTTPSProxy)),
		NoProxy:    first(KeyNoProxy, cfg.Proxy.NoProxy, settings.NoProxy),
	}
	if proxies.HTTPProxy == "" && proxies.HTTPSProxy == "" {
		return func(*http.Request) (*url.URL, error) { return nil, nil }
	}
	choose := proxies.ProxyFunc()
	return func(req *http.Request) (*url.URL, error) {
		u, err := choose(req.URL)
		if err != nil { // the original text repeats the address, and with it a password
			return nil, errors.New("the configured proxy is not an address")
		}
		return u, nil
	}
}

// lookupEither finds a variable under its name or the same in lower case; a name with a value goes first.
func lookupEither(envs map[string]string, key string) string {
	if val := envs[key]; strings.TrimSpace(val) != "" {
		return val
	}
	return envs[strings.ToLower(key)]
}

// checkProxy reports why an address cannot be a proxy. Its text never holds a password.
func checkProxy(val string) error {
	u, err := parseProxy(val)
	if err != nil {
		return errors.New("not an address")
	}
	switch u.Scheme {
	case "http", "https", "socks5", "socks5h":
	default:
		return fmt.Errorf("a proxy of an unknown kind: %q", shorten(u.Scheme))
	}
	if u.Hostname() == "" {
		return errors.New("no host name in it")
	}
	return nil
}

// parseProxy reads a proxy address as net/http does: "http://" may be left out.
func parseProxy(val string) (*url.URL, error) {
	if !strings.Contains(val, "://") {
		val = "http://" + val
	}
	return url.Parse(val)
}

// display makes a value fit for logs: without a proxy's login and not too long.
func display(key, val string) string {
	switch key {
	case KeySecret:
		return "(secret)"
	case KeyHTTPProxy, KeyHTTPSProxy:
		if val == "" {
			return ""
		}
		u, err := parseProxy(val)
		if err != nil {
			return "(unreadable)"
		}
		if u.User != nil {
			u.User = url.User("(secret)")
		}
		return shorten(u.String())
	}
	return shorten(val)
}
