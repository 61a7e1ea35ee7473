package main

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"
)

func TestAnnounce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: file, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", file)
	t.Setenv("WATCHDOG_USEC", "20000")
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- announce(ctx) }()
	said := func() string {
		buf := make([]byte, 64)
		manager.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, err := manager.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	for _, want := range []string{"READY=1", "WATCHDOG=1", "WATCHDOG=1"} {
		if got := said(); got != want {
			t.Fatalf("the manager was told %q, want %q", got, want)
		}
	}
	stop()
	for got := ""; got != "STOPPING=1"; {
		if got = said(); got != "WATCHDOG=1" && got != "STOPPING=1" {
			t.Fatalf("the manager was told %q", got)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	t.Setenv("NOTIFY_SOCKET", "")
	if err := notify("READY=1"); err != nil {
		t.Errorf("without a manager: %v", err)
	}
}
