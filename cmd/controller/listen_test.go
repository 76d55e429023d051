package main

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestAnAddressThatCannotBeListenedAtGetsAHint(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	for address, want := range map[string]string{
		taken.Addr().String(): "another program listens there",
		"8080":                "an address and a port, please",
	} {
		_, err := net.Listen("tcp", address)
		if err == nil {
			t.Fatalf("%s can be listened at", address)
		}
		if got := (&listenError{err}).Hint(); !strings.Contains(got, want) {
			t.Errorf("%s: %v: hint %q, want %q", address, err, got, want)
		}
	}
	if got := (&listenError{syscall.EACCES}).Hint(); !strings.Contains(got, "below 1024") {
		t.Errorf("a port of root's: %q", got)
	}
	if got := (&listenError{net.ErrClosed}).Hint(); got != "" {
		t.Errorf("what nobody knows about: %q", got)
	}
}

func TestTheHintToStartAControllerNamesItsDirectory(t *testing.T) {
	f := &flags{data: t.TempDir() + "/a b"}
	_, err := f.open()
	hinter, ok := err.(interface{ Hint() string })
	if !ok || hinter.Hint() != "start one with: devopsController serve --data '"+f.data+"'" {
		t.Errorf("%v: %#v", err, err)
	}
	if err := writeEndpoint(filepath.Join(mkdir(t, f.data), endpointFile), endpoint{URL: "http://127.0.0.1:1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.open(); !errors.As(err, new(*tokenError)) || !strings.Contains(err.(*tokenError).Hint(), "end it and start it again") {
		t.Errorf("without a token: %v", err)
	}
	if got := (&downError{}).Hint(); got != "start one with: devopsController serve" {
		t.Errorf("the default one: %q", got)
	}
}

func mkdir(t *testing.T, dir string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}
