package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"path/filepath"
	"testing"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// A43: a client leaves in the middle of a zip. The outcome has the id of its decision, says that it was cut short, and
// how much was really sent: no less than the client read, and not all.
func TestA43ClientLeavesDuringAZip(t *testing.T) {
	const size, taste = 32 << 20, 64 << 10
	up := mirrortest.Start(t)
	if err := up.AddBig("example.com/big", "v1.0.0", size); err != nil {
		t.Fatal(err)
	}
	s := newSite(t, up, "")
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	resp, err := s.get(ctx, bigModule)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.CopyN(io.Discard, resp.Body, taste); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("status %d, %v", resp.StatusCode, err)
	}
	leave()
	var decision, outcome audit.Record
	waitFor(t, "the outcome is in the log", func() bool {
		decision, outcome = s.last(audit.KindDecision), s.last(audit.KindOutcome)
		return outcome.EventID != ""
	})
	if outcome.EventID != decision.EventID || outcome.Module != "example.com/big" || decision.Decision.Effect != "allow" {
		t.Errorf("outcome of %s %s, want of %s", outcome.EventID, outcome.Module, decision.EventID)
	}
	if o := outcome.Outcome; !o.Aborted || o.Bytes < taste || o.Bytes >= size {
		t.Errorf("outcome %+v, want aborted after at least %d bytes and before %d", o, taste, size)
	}
}

// last is the newest record of a kind about a module, an empty one if there is none.
func (s *site) last(kind audit.Kind) (found audit.Record) {
	s.t.Helper()
	err := audit.Tail(s.t.Context(), filepath.Join(s.dir, "state/audit"), audit.TailOptions{NoLeaf: true}, func(e audit.Entry) error {
		var r audit.Record
		err := json.Unmarshal(e.Raw, &r)
		if r.Kind == kind && r.Module != "" {
			found = r
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return found
}
