package policy

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestP21Stale: that the repository is out of reach is a warning at once, an alarm after 15 minutes, each said once, and
// over when it is read again.
func TestP21Stale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := newMeters(nil)
		if err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		e := &Engine{metrics: m, opts: Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}}
		e.reached()
		for range 40 {
			time.Sleep(30 * time.Second)
			e.away(t.Context(), errors.New("no route to host"))
			if s := e.Status(); s.Trouble != "no route to host" || s.Stale != (time.Since(s.LastSeen) > 15*time.Minute) {
				t.Errorf("%v after it was seen: %+v", time.Since(s.LastSeen), s)
			}
		}
		if n := strings.Count(log.String(), "level=WARN"); n != 1 {
			t.Errorf("%d warnings, want 1:\n%s", n, &log)
		}
		if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
			t.Errorf("%d alarms, want 1:\n%s", n, &log)
		}
		e.reached()
		if s := e.Status(); s.Trouble != "" || s.Stale {
			t.Errorf("Status() after it was read = %+v", s)
		}
		over, cancel := context.WithCancel(t.Context())
		cancel()
		e.away(over, context.Canceled)
		if s := e.Status(); s.Trouble != "" {
			t.Errorf("stopping is told as trouble: %+v", s)
		}
	})
}

// TestRollbackEnds: it holds through its last day, UTC, and no longer.
func TestRollbackEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // which begins at midnight UTC of 2000-01-01
		back := Rollback{Revision: "x", Until: "2000-01-02"}
		e := &Engine{cfg: Config{RollbackTo: back}}
		for _, tt := range []struct {
			after time.Duration
			want  Rollback
		}{{0, back}, {48*time.Hour - time.Second, back}, {2 * time.Second, Rollback{}}} {
			time.Sleep(tt.after)
			if got := e.rollback(); got != tt.want {
				t.Errorf("rollback() at %v = %+v, want %+v", time.Now().UTC(), got, tt.want)
			}
		}
	})
}

// FuzzUnseal: no bytes but those that the key signed are a record.
func FuzzUnseal(f *testing.F) {
	key, err := openKey(f.TempDir() + "/key")
	if err != nil {
		f.Fatal(err)
	}
	want := Record{Source: "git", Commit: "c", Digest: "d"}
	text, err := seal(key, want)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add(bytes.Replace(text, []byte(`"d"`), []byte(`"e"`), 1))
	f.Fuzz(func(t *testing.T, text []byte) {
		if r, err := unseal(key, text); err == nil && r != want {
			t.Errorf("unseal(%q) = %+v", text, r)
		}
	})
}
