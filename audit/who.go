package audit

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// WhoQuery asks who fetched a module.
type WhoQuery struct {
	Module  string // module path
	Version string // "" for every version
	// Delivered leaves only those who got the code itself: a zip, allowed and not broken off.
	Delivered bool
	// Refused leaves only refusals and failures.
	Refused bool
	// Verify reads the records themselves and checks each against the tree, instead of believing the indexes.
	Verify bool
}

// A Fetch is what one subject did with one version from one device, folded.
type Fetch struct {
	Module  string    `json:"module"`
	Version string    `json:"version"`
	Subject string    `json:"subject,omitempty"` // the issuer's opaque subject; "" is anonymous
	Issuer  string    `json:"issuer,omitempty"`
	Device  string    `json:"device,omitempty"`
	What    string    `json:"what"`   // zip, or metadata: .info and .mod, or a zip's headers alone
	Effect  string    `json:"effect"` // allow, deny, error
	Aborted bool      `json:"aborted,omitempty"`
	Count   int64     `json:"count"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
}

// Delivered reports whether the code itself arrived.
func (f Fetch) Delivered() bool { return f.Effect == "allow" && f.What == "zip" && !f.Aborted }

// A WhoAnswer is the answer to a WhoQuery, ordered by version, then by first time.
type WhoAnswer struct {
	Fetches []Fetch  `json:"fetches"`
	Covered Coverage `json:"covered"`
}

// Who answers from the indexes alone, so that the age of the log hardly matters.
func (a *Archive) Who(ctx context.Context, q WhoQuery) (*WhoAnswer, error) {
	if q.Module == "" || q.Delivered && q.Refused {
		return nil, fmt.Errorf("asking who fetched %q: want a module path, and delivered or refused, not both", q.Module)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	answer := &WhoAnswer{Fetches: []Fetch{}}
	total := map[fetcher]*tally{}
	checked := map[int64]bool{}
	err := a.each(ctx, &answer.Covered, func(p *part) error {
		if q.Verify && !checked[p.epoch] {
			checked[p.epoch] = true
			if err := checkTree(ctx, a.dir, p.epoch); err != nil {
				return err
			}
		}
		found, err := p.who(q)
		if err != nil {
			return err
		}
		for _, f := range found {
			t := total[f.who]
			if t == nil {
				t = &tally{}
				total[f.who] = t
			}
			t.add(f.tally)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("asking who fetched %s: %w", EscapeTerminal(q.Module), err)
	}
	settle(total)
	for who, t := range total {
		f := who.fetch(*t)
		if q.Delivered && !f.Delivered() || q.Refused && f.Effect == "allow" {
			continue
		}
		answer.Fetches = append(answer.Fetches, f)
	}
	slices.SortFunc(answer.Fetches, func(a, b Fetch) int {
		return cmp.Or(strings.Compare(a.Version, b.Version), a.First.Compare(b.First), strings.Compare(a.Subject, b.Subject),
			strings.Compare(a.Device, b.Device), strings.Compare(a.What, b.What), strings.Compare(a.Effect, b.Effect))
	})
	return answer, nil
}

// A found is one tally of one segment.
type found struct {
	who   fetcher
	tally tally
}

// who asks one segment.
func (p *part) who(q WhoQuery) ([]found, error) {
	if q.Verify {
		return p.whoFromRecords(q)
	}
	var all []found
	err := p.index.fetches(q.Module, q.Version, func(who fetcher, t tally) error {
		all = append(all, found{who, t})
		return nil
	})
	return all, err
}

// whoFromRecords makes the same from the records, each held against the tree's leaves.
func (p *part) whoFromRecords(q WhoQuery) ([]found, error) {
	kind, word := byte(keyPath), q.Module
	if q.Version != "" {
		kind, word = keyVersion, q.Module+"@"+q.Version
	}
	numbers, err := p.index.records(kind, word)
	if err != nil || len(numbers) == 0 {
		return nil, err
	}
	// The newest segment has no leaf hashes yet: its chain was followed when it was read, a moment ago.
	hashes, sealed, err := p.readHashes(p.first, p.index.count)
	if err != nil {
		return nil, err
	}
	x := newIndexer(p.first)
	err = p.read(numbers, func(e Entry) error {
		at := (e.Seq - p.first) * tlog.HashSize
		if sealed && e.Leaf != tlog.Hash(hashes[at:at+tlog.HashSize]) {
			return &DamageError{Code: ExitAltered, Epoch: p.epoch, Seq: e.Seq, SeqTo: e.Seq, EventID: eventID(e.Raw), Detail: "its hash is not the one kept when the segment was sealed"}
		}
		b, err := parseBrief(e.Raw)
		if err != nil {
			return err
		}
		if b.Module == q.Module && (q.Version == "" || b.Version == q.Version) {
			x.fetch(b)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return x.found(), nil
}

// found returns the fetches of an indexer in words.
func (x *indexer) found() []found {
	names := make([]string, len(x.words))
	for w, n := range x.words {
		names[n] = w
	}
	var all []found
	for _, f := range x.fetches {
		who := fetcher{
			path: names[f.who.path], version: names[f.who.version], subject: names[f.who.subject],
			issuer: names[f.who.issuer], device: names[f.who.device], flags: f.who.flags,
		}
		all = append(all, found{who, tally{count: f.count, first: f.t, last: f.t}})
	}
	return all
}

// checkTree holds the leaf hashes of an epoch against its signed checkpoint, so that records can be held against them.
func checkTree(ctx context.Context, dir string, epoch int64) error {
	ring, err := readKeys(dir, epoch)
	if err != nil {
		return &DamageError{Code: ExitKey, Epoch: epoch, Seq: -1, SeqTo: -1, Detail: err.Error()}
	}
	in, err := inspect(dir, epoch, ring, nil)
	if err != nil {
		return err
	}
	in.trustHashes, in.patience = true, 50
	return in.run(ctx)
}

// settle moves broken-off fetches to where they belong if their outcome stands in a later segment than their decision.
func settle(total map[fetcher]*tally) {
	for who, late := range total {
		if who.flags&fetchLate == 0 {
			continue
		}
		delete(total, who)
		who.flags &^= fetchLate
		if t := total[who]; t != nil {
			t.add(*late)
		} else {
			total[who] = late
		}
		who.flags &^= fetchAborted
		if t := total[who]; t != nil {
			if t.count -= late.count; t.count <= 0 {
				delete(total, who)
			}
		}
	}
}

// fetch returns a tally as it is shown.
func (w fetcher) fetch(t tally) Fetch {
	f := Fetch{
		Module: w.path, Version: w.version, Subject: w.subject, Issuer: w.issuer, Device: w.device,
		What: "metadata", Effect: [...]string{"allow", "deny", "error", "error"}[w.flags&3], Aborted: w.flags&fetchAborted != 0,
		Count: t.count, First: time.Unix(0, t.first).UTC(), Last: time.Unix(0, t.last).UTC(),
	}
	if w.flags&fetchZip != 0 {
		f.What = "zip"
	}
	return f
}
