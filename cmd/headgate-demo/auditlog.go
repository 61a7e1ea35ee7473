package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// An entry is one record of the audit log, as `headgate audit tail` prints it in its two forms.
type entry struct {
	seq  int
	line string // for people
	raw  string // JSON as it stands in the log

	Kind     string
	EventID  string `json:"event_id"`
	Action   string
	Module   string
	Version  string
	Subject  struct{ ID string }
	Decision struct {
		Effect string
		Codes  []string
		Status int
	}
}

// shortID is the part of the event id that people are shown.
func (e *entry) shortID() string { return strings.ToLower(e.EventID[:min(8, len(e.EventID))]) }

// An auditLog is what the log holds.
type auditLog struct{ entries []*entry }

// readLog reads the whole log through headgate's own verb.
func (g *gate) readLog(ctx context.Context) (*auditLog, error) {
	text, err := g.run(ctx, "audit", "tail", "-n", "0")
	if err != nil {
		return nil, fmt.Errorf("reading the audit log: %w: %s", err, text)
	}
	raw, err := g.run(ctx, "audit", "tail", "-n", "0", "--json")
	if err != nil {
		return nil, fmt.Errorf("reading the audit log: %w: %s", err, raw)
	}
	return parseLog(text, raw)
}

// parseLog joins the two forms; the second was read later and may be longer.
func parseLog(text, raw string) (*auditLog, error) {
	l := &auditLog{}
	lines, records := strings.Split(strings.TrimRight(text, "\n"), "\n"), strings.Split(raw, "\n")
	if len(records) < len(lines) {
		return nil, fmt.Errorf("reading the audit log: %d lines but %d records", len(lines), len(records))
	}
	for i, line := range lines {
		e := &entry{line: line, raw: records[i]}
		if err := json.Unmarshal([]byte(e.raw), e); err != nil {
			return nil, fmt.Errorf("reading record %d: %w", i, err)
		}
		number, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		seq, err := strconv.Atoi(number)
		if err != nil {
			return nil, fmt.Errorf("reading the number of record %q: %w", line, err)
		}
		e.seq = seq
		l.entries = append(l.entries, e)
	}
	return l, nil
}

// first finds the first record of a kind that wanted holds for.
func (l *auditLog) first(wanted func(*entry) bool) *entry {
	for _, e := range l.entries {
		if wanted(e) {
			return e
		}
	}
	return nil
}

// decision finds the decision with that short id.
func (l *auditLog) decision(id string) *entry {
	return l.first(func(e *entry) bool { return e.Kind == "decision" && e.shortID() == id })
}

// served counts the zips that a person was given, by module.
func (l *auditLog) served(subject string) map[string]int {
	n := map[string]int{}
	for _, e := range l.entries {
		if e.Kind == "decision" && e.Action == "zip" && e.Decision.Effect == "allow" && e.Subject.ID == subject {
			n[e.Module+"@"+e.Version]++
		}
	}
	return n
}

func (s *tale) recorded(ctx context.Context) (err error) {
	s.t.step("The audit log has all of it")
	if s.log, err = s.gate.readLog(ctx); err != nil {
		return err
	}
	ann, ben := s.people[0].id, s.people[1].id
	s.t.say("headgate audit tail, shortened: %d records, of which", len(s.log.entries))
	shown := []*entry{
		s.log.first(func(e *entry) bool { return e.Kind == "auth" && e.Subject.ID == ann }),
		s.log.first(func(e *entry) bool { return e.Action == "zip" && e.Subject.ID == ann }),
		s.log.decision(s.refusal),
	}
	for _, id := range s.strangers {
		shown = append(shown, s.log.decision(id))
	}
	shown = append(shown, s.log.first(func(e *entry) bool { return len(e.Decision.Codes) > 0 && e.Decision.Codes[0] == "WITHHELD" }))
	for _, e := range shown {
		if e == nil {
			return fmt.Errorf("%w: each of these requests has its record", errClaim)
		}
		s.t.shows(shorten(e.line, 150))
	}
	refusal, twice := s.log.decision(s.refusal), 0
	for _, n := range s.log.served(ann) {
		if n == 2 {
			twice++
		}
	}
	out, err := s.gate.run(ctx, "audit", "verify")
	s.t.say("headgate audit verify, while the gateway runs:")
	s.t.shows(out)
	return errors.Join(
		s.t.claims(refusal.Subject.ID == ben && refusal.Decision.Status == 403 && refusal.Module == deniedModule,
			"Ben's refusal is record %d, under the id that his terminal showed", refusal.seq),
		s.t.claims(twice == len(s.modules), "each of the %d zips that Ann was given twice has its two records", twice),
		s.t.claims(err == nil, "the log verifies: exit 0"))
}

func (s *tale) tampered(ctx context.Context) error {
	s.t.step("Somebody changes one bit of a copy of the log")
	log, err := s.gate.readLog(ctx) // it has grown by its end
	if err != nil {
		return err
	}
	refusal := log.decision(s.refusal)
	if refusal == nil {
		return fmt.Errorf("%w: the refusal is still in the log", errClaim)
	}
	last := log.entries[len(log.entries)-1]
	return errors.Join(
		s.flipped(ctx, "the refusal's record", "refusal", refusal, strings.Index(refusal.raw, `"deny"`)+1),
		s.flipped(ctx, "the last record", "last", last, len(last.raw)/2))
}

// flipped changes one bit of a record in a copy of the log, and lets headgate find it.
func (s *tale) flipped(ctx context.Context, what, name string, e *entry, at int) error {
	dir := filepath.Join(s.dir, "audit-"+name)
	if err := os.CopyFS(dir, os.DirFS(s.gate.audit())); err != nil {
		return fmt.Errorf("copying the audit log: %w", err)
	}
	file, offset, err := flipBit(dir, []byte(e.raw), at)
	if err != nil {
		return err
	}
	s.t.say("One bit of %s (record %d): byte %d of %s. headgate audit verify:", what, e.seq, offset, filepath.Base(file))
	out, err := s.gate.run(ctx, "audit", "verify", "--dir", dir)
	s.t.shows(strings.ReplaceAll(out, s.dir, "..."))
	code := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	}
	return errors.Join(
		s.t.claims(code == 10, "exit code 10 (it is %d)", code),
		s.t.claims(strings.Contains(out, fmt.Sprintf("record %d ", e.seq)) || strings.Contains(out, fmt.Sprintf("record %d:", e.seq)), "it names record %d", e.seq),
		os.RemoveAll(dir))
}

// flipBit finds a record's bytes in the segments of a log and flips the lowest bit of the one at the given place.
func flipBit(dir string, record []byte, at int) (file string, offset int64, err error) {
	err = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(name) != ".log" || file != "" {
			return err
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if i := bytes.Index(text, record); i >= 0 {
			file, offset = name, int64(i+at)
		}
		return nil
	})
	if err == nil && file == "" {
		err = errors.New("its bytes are in no segment")
	}
	if err != nil {
		return "", 0, fmt.Errorf("looking for the record in %s: %w", dir, err)
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return "", 0, fmt.Errorf("changing the record: %w", err)
	}
	_, err = f.WriteAt([]byte{record[at] ^ 1}, offset)
	if err = errors.Join(err, f.Close()); err != nil {
		return "", 0, fmt.Errorf("changing the record: %w", err)
	}
	return file, offset, nil
}
