package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/failsafe-go/failsafe-go/retrypolicy"
)

// server is one entry of the list with its breaker.
type server struct {
	c        *Client
	entry    Entry
	base     string // URL with a trailing slash and no password
	anyError bool
	// credentialFile is read for each request; empty where the server wants none.
	credentialFile string

	exec    failsafe.Executor[any]
	breaker circuitbreaker.CircuitBreaker[any]
}

// tryError is a try that went wrong, with what a retry needs to know.
type tryError struct {
	err   error // wraps ErrFailed or ErrTimeout
	again bool  // asking again may help
	after time.Duration
}

func (e *tryError) Error() string { return e.err.Error() }
func (e *tryError) Unwrap() error { return e.err }

// maxRetryAfter is the longest Retry-After that is waited for; longer ends the tries.
const maxRetryAfter = 10 * time.Second

func (c *Client) newServer(e Entry) *server {
	base := *e.URL
	base.User = nil
	s := &server{c: c, entry: e, base: base.String() + "/", anyError: e.AnyError}
	host := e.Host()
	troubled := func(_ any, err error) bool {
		t, ok := errors.AsType[*tryError](err)
		return ok && t.again
	}
	s.breaker = circuitbreaker.NewBuilder[any]().
		HandleIf(troubled).
		WithFailureThreshold(5).
		WithSuccessThreshold(1).
		WithDelay(c.leftAlone).
		WithJitterFactor(0.2).
		OnStateChanged(func(ev circuitbreaker.StateChangedEvent) {
			c.metrics.changed(host, s, breakerState(ev.NewState))
			c.log.LogAttrs(context.Background(), slog.LevelWarn, "upstream breaker changed",
				slog.String("upstream", host), slog.String("state", ev.NewState.String()))
		}).
		Build()
	retry := retrypolicy.NewBuilder[any]().
		HandleIf(troubled).
		AbortIf(func(_ any, err error) bool {
			t, ok := errors.AsType[*tryError](err)
			return ok && t.after > maxRetryAfter
		}).
		WithMaxAttempts(3).
		WithBackoffFactor(100*time.Millisecond, time.Second, 2).
		WithJitterFactor(0.2).
		WithDelayFunc(func(x failsafe.ExecutionAttempt[any]) time.Duration {
			if t, ok := errors.AsType[*tryError](x.LastError()); ok && t.after > 0 {
				return t.after
			}
			return -1 // the backoff
		}).
		ReturnLastFailure().
		Build()
	s.exec = failsafe.With[any](retry, s.breaker)
	c.metrics.init(host)
	return s
}

func breakerState(st circuitbreaker.State) float64 {
	switch st {
	case circuitbreaker.HalfOpenState:
		return 1
	case circuitbreaker.OpenState:
		return 2
	default:
		return 0
	}
}

// probeLook is how often those who wait for a probe look whether it is over.
const probeLook = 20 * time.Millisecond

// fetch asks this server, up to three times. While one request probes a server that was left alone, others wait for
// what becomes of it: a flight asks for several files at once and must not fail on its own probe.
func (s *server) fetch(ctx context.Context, r Request, dst Sink) error {
	for start := time.Now(); ; {
		err := s.ask(ctx, r, dst)
		switch {
		case !errors.Is(err, circuitbreaker.ErrOpen):
			return err
		case s.breaker.IsOpen():
			s.c.metrics.requests.WithLabelValues(s.entry.Host(), "breaker_open").Inc()
			return fmt.Errorf("%w: %s failed five times in a row and is left alone for %s", ErrFailed, s.entry.Host(), s.c.leftAlone)
		case time.Since(start) > s.c.firstByte:
			return fmt.Errorf("%w: %s was left alone and is slow to come back", ErrTimeout, s.entry.Host())
		}
		select {
		case <-time.After(probeLook):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// ask makes the tries that breaker and retries allow.
func (s *server) ask(ctx context.Context, r Request, dst Sink) error {
	tries := 0
	err := s.exec.WithContext(ctx).Run(func() error {
		if tries++; tries > 1 {
			if err := dst.Reset(); err != nil {
				return err
			}
		}
		err := s.try(ctx, r, dst)
		s.c.metrics.requests.WithLabelValues(s.entry.Host(), result(err)).Inc()
		return err
	})
	if err != nil && tries > 0 {
		return errors.Join(err, dst.Reset())
	}
	return err
}

// try sends one request and copies the body of a 200.
func (s *server) try(ctx context.Context, r Request, dst Sink) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.base+r.Path, nil)
	if err != nil {
		return err
	}
	if err := s.authorize(req); err != nil {
		// The text alone: a file of ours that is missing is no missing module.
		return &tryError{err: fmt.Errorf("%w: reading the credential file for %s: %s", ErrFailed, s.entry.Host(), err.Error())}
	}
	req.Header.Set("User-Agent", "headgate")
	resp, err := s.c.http.Do(req)
	if err != nil {
		return s.broken(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return s.refused(resp)
	}
	if coding := resp.Header.Get("Content-Encoding"); coding != "" && coding != "identity" {
		// None was asked for: unpacked it could be of any size, packed it is not the file.
		return &tryError{err: fmt.Errorf("%w: %s sent a content encoding that was not asked for", ErrFailed, s.entry.Host())}
	}
	if err := s.copy(ctx, cancel, resp, r.MaxBytes, dst); err != nil {
		return err
	}
	if r.Check != nil {
		if err := r.Check(); err != nil {
			return &tryError{err: fmt.Errorf("%w: %s sent what is not wanted: %w", ErrFailed, s.entry.Host(), err)}
		}
	}
	return nil
}

// refused turns a status other than 200 into an error.
func (s *server) refused(resp *http.Response) error {
	switch code := resp.StatusCode; code {
	case http.StatusNotFound, http.StatusGone:
		return ErrNotFound
	case http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		kind := ErrFailed
		if code == http.StatusGatewayTimeout {
			kind = ErrTimeout
		}
		return &tryError{
			err:   fmt.Errorf("%w: %s answered %d", kind, s.entry.Host(), code),
			again: true,
			after: retryAfter(resp.Header.Get("Retry-After")),
		}
	default:
		return &tryError{err: fmt.Errorf("%w: %s answered %d", ErrFailed, s.entry.Host(), code)}
	}
}

func retryAfter(h string) time.Duration {
	if n, err := strconv.ParseUint(h, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(h); err == nil {
		return max(0, time.Until(t))
	}
	return 0
}

// copy moves the body, counting; one that stands still is cut off.
func (s *server) copy(ctx context.Context, cancel context.CancelCauseFunc, resp *http.Response, maxBytes int64, dst Sink) error {
	tooMuch := &tryError{err: fmt.Errorf("%w: %s sent more than %d bytes", ErrFailed, s.entry.Host(), maxBytes)}
	if resp.ContentLength > maxBytes {
		return tooMuch
	}
	stall := time.AfterFunc(s.c.firstByte, func() { cancel(context.DeadlineExceeded) })
	defer stall.Stop()
	body := readerFunc(func(b []byte) (int, error) {
		n, err := resp.Body.Read(b)
		stall.Reset(s.c.firstByte)
		return n, err
	})
	w := &sinkError{dst: dst}
	n, err := io.Copy(w, io.LimitReader(body, maxBytes+1))
	switch {
	case w.err != nil:
		return w.err // our disk, not their fault
	case err != nil:
		return s.broken(ctx, err)
	case n > maxBytes:
		return tooMuch
	}
	return nil
}

// sinkError remembers that writing failed, not reading.
type sinkError struct {
	dst Sink
	err error
}

func (w *sinkError) Write(b []byte) (int, error) {
	n, err := w.dst.Write(b)
	w.err = err
	return n, err
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// broken classifies an error of connection or body.
func (s *server) broken(ctx context.Context, err error) error {
	if errors.Is(err, errRedirect) {
		return &tryError{err: fmt.Errorf("%w: %s: %w", ErrFailed, s.entry.Host(), cause(err))}
	}
	if errors.Is(context.Cause(ctx), context.Canceled) {
		return fmt.Errorf("asking %s: %w", s.entry.Host(), context.Cause(ctx)) // our doing: no failure of theirs
	}
	kind := ErrFailed
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() || errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		kind = ErrTimeout
	}
	return &tryError{err: fmt.Errorf("%w: %s: %w", kind, s.entry.Host(), cause(err)), again: true}
}
