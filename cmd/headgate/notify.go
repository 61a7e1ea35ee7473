package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"
)

// notify tells the service manager a change of state, as READY=1 or STOPPING=1: sd_notify(3). Without one it does nothing.
func notify(state string) error {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return nil
	}
	if socket[0] == '@' {
		socket = "\x00" + socket[1:] // the abstract name space
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("reaching the service manager: %w", err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("telling the service manager %s: %w", state, err)
	}
	return nil
}

// announce says that the gateway is ready, then feeds the watchdog, if there is one, at half of its patience until ctx
// ends: a process that does not turn any more is started again.
func announce(ctx context.Context) error {
	if err := notify("READY=1"); err != nil {
		return err
	}
	patience, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || patience <= 0 {
		<-ctx.Done()
		return notify("STOPPING=1")
	}
	ticker := time.NewTicker(time.Duration(patience) * time.Microsecond / 2)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return notify("STOPPING=1") // the manager's own time limit for stopping counts from here
		case <-ticker.C:
			if err := notify("WATCHDOG=1"); err != nil {
				return err
			}
		}
	}
}
