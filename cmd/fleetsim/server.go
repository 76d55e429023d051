package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/process"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// server is a real devopsController on a directory of its own.
type server struct {
	program string
	dir     string // data directory
	args    []string
	log     string // file of its output
	listen  string // address, the same after a restart
	url     string
	token   string
	tls     bool
	roots   *x509.CertPool // of its certificate, pinned at the first start; nil without TLS
	http    *http.Client

	mu  sync.Mutex
	cmd *exec.Cmd
}

// start starts it and waits until it listens.
func (s *server) start(ctx context.Context) error {
	out, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	listen := s.listen
	if listen == "" {
		listen = "127.0.0.1:0"
	}
	args := append([]string{"serve", "--json", "--log-level", "error", "--data", s.dir, "--listen", listen}, s.args...)
	if s.tls {
		args = append(args, "--tls", "self")
	}
	cmd := exec.Command(s.program, args...)
	cmd.Stderr = out
	said, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the controller: %w", err)
	}
	s.mu.Lock()
	s.cmd = cmd
	s.mu.Unlock()
	var at struct {
		URL    string `json:"url"`
		SHA256 string `json:"sha256"`
	}
	if err := json.NewDecoder(io.LimitReader(said, 64<<10)).Decode(&at); err != nil {
		return errors.Join(fmt.Errorf("start the controller: %w; see %s", err, s.log), s.kill())
	}
	s.url = at.URL
	_, s.listen, _ = strings.Cut(at.URL, "://")
	if s.tls && s.roots == nil {
		if err := s.pin(ctx, at.SHA256); err != nil {
			return errors.Join(err, s.kill())
		}
	}
	token, err := os.ReadFile(filepath.Join(s.dir, "operator.token"))
	s.token = strings.TrimSpace(string(token))
	return err
}

// pin trusts the certificate of this fingerprint, and no other, as an agent with --pin does.
func (s *server) pin(ctx context.Context, fingerprint string) error {
	pin, err := wire.ParsePin(fingerprint)
	if err != nil {
		return err
	}
	_, cert, err := pin.Trust(ctx, s.url, operatorClient())
	if err != nil {
		return err
	}
	s.roots = x509.NewCertPool()
	s.roots.AddCert(cert)
	s.http.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.roots, MinVersion: tls.VersionTLS12}, MaxIdleConns: 64, MaxIdleConnsPerHost: 64,
		IdleConnTimeout: time.Minute}
	return nil
}

// kill ends it as a power cut would.
func (s *server) kill() error {
	s.mu.Lock()
	cmd := s.cmd
	s.cmd = nil
	s.mu.Unlock()
	if cmd == nil {
		return nil
	}
	err := cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	return err
}

// use is what a process has used: seconds of CPU so far, and memory in bytes now.
type use struct {
	cpu float64
	rss uint64
}

// use is that of the controller; zero while it is down.
func (s *server) use() use {
	s.mu.Lock()
	cmd := s.cmd
	s.mu.Unlock()
	if cmd == nil {
		return use{}
	}
	return useOf(int32(cmd.Process.Pid))
}

func useOf(pid int32) (u use) {
	p, err := process.NewProcess(pid)
	if err != nil {
		return use{}
	}
	if times, err := p.Times(); err == nil {
		u.cpu = times.User + times.System
	}
	if memory, err := p.MemoryInfo(); err == nil {
		u.rss = memory.RSS
	}
	return u
}

// machineBusy is the seconds of CPU that everything on this machine has used so far; 0 where that is not known.
func machineBusy(ctx context.Context) float64 {
	times, err := cpu.TimesWithContext(ctx, false)
	if err != nil || len(times) == 0 {
		return 0
	}
	t := times[0] // of a guest's time, user is the sum
	return t.User + t.Nice + t.System + t.Irq + t.Softirq + t.Steal
}

// do makes a call of the operator API.
func (s *server) do(ctx context.Context, method, path string, body, answer any) error {
	var data []byte
	var err error
	switch b := body.(type) {
	case nil:
	case []byte:
		data = b
	default:
		if data, err = json.Marshal(b); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.url+"/api/v1"+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+s.token)
	resp, err := s.http.Do(req)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 256<<20))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, bytes.TrimSpace(text[:min(len(text), 500)]))
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

// operatorClient is for the operator API: a few calls at a time.
func operatorClient() *http.Client {
	return &http.Client{Transport: &http.Transport{MaxIdleConns: 64, MaxIdleConnsPerHost: 64, IdleConnTimeout: time.Minute}}
}

// lines is how many lines the log of a build has: each is read.
func (s *server) lines(ctx context.Context, build string) (n int64, err error) {
	req, err := http.NewRequestWithContext(ctx, "GET", s.url+"/api/v1/builds/"+build+"/log", nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+s.token)
	resp, err := s.http.Do(req)
	if err != nil {
		return 0, fmt.Errorf("read a log: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	buffer := make([]byte, 1<<20)
	for {
		got, err := resp.Body.Read(buffer)
		n += int64(bytes.Count(buffer[:got], []byte("\n"))) // JSON has no line breaks inside
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, fmt.Errorf("read a log: %w", err)
		}
	}
}
