//go:build unix

package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"testing"
	"time"
)

// slowReader is an agent whose configuration takes its time to be read.
type slowReader struct {
	reading chan struct{} // one element for each reading
	goOn    chan struct{} // closed when reading may end
	stops   chan bool
}

func (s *slowReader) Stop(now bool) { s.stops <- now }

func (s *slowReader) Reload() error {
	select {
	case s.reading <- struct{}{}:
	default:
	}
	<-s.goOn
	return nil
}

// TestAStormOfHangUpsHidesNoWishToEnd: however many SIGHUP wait, both SIGTERM are heard.
func TestAStormOfHangUpsHidesNoWishToEnd(t *testing.T) {
	arrived := make(chan os.Signal, 1)
	signal.Notify(arrived, syscall.SIGHUP, syscall.SIGTERM)
	defer signal.Stop(arrived)
	send := func(sig syscall.Signal) {
		t.Helper()
		if err := syscall.Kill(os.Getpid(), sig); err != nil {
			t.Fatal(err)
		}
		<-arrived
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := catch(ctx)
	defer c.release()
	a := &slowReader{reading: make(chan struct{}, 1), goOn: make(chan struct{}), stops: make(chan bool, 2)}
	done := make(chan struct{})
	var steering sync.WaitGroup
	steering.Go(func() { c.steer(a, slog.New(slog.DiscardHandler), done) })
	send(syscall.SIGHUP)
	<-a.reading
	for range 100 {
		send(syscall.SIGHUP)
	}
	send(syscall.SIGTERM)
	cancel() // as cli.Main does of the first
	send(syscall.SIGTERM)
	close(a.goOn)
	var got []bool
	limit := time.After(10 * time.Second)
	for len(got) < 2 {
		select {
		case now := <-a.stops:
			got = append(got, now)
		case <-limit:
			t.Fatalf("told to stop: %v", got)
		}
	}
	if got[0] == got[1] {
		t.Errorf("told to stop: %v", got)
	}
	close(done)
	steering.Wait()
}
