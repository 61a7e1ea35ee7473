package audit

import (
	"context"
	"fmt"
	"slices"
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
	// Limit is the most fetches to give; 0 for all.
	Limit int
	// After is where to go on: WhoAnswer.Next of the page before; "" is the beginning.
	After string
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
	Next    string   `json:"next,omitempty"` // WhoQuery.After of the next page; "" at the end
	Covered Coverage `json:"covered"`
}

// Who answers from the indexes alone, so that the age of the log hardly matters.
func (a *Archive) Who(ctx context.Context, q WhoQuery) (*WhoAnswer, error) {
	after, err := q.cursor()
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	answer := &WhoAnswer{Fetches: []Fetch{}}
	total, words := map[fetchKey]tally{}, newLexicon()
	checked := map[int64]bool{}
	err = a.each(ctx, &answer.Covered, func(p *part) error {
		if q.Verify && !checked[p.epoch] {
			checked[p.epoch] = true
			if err := checkTree(ctx, a.dir, p.epoch); err != nil {
				return err
			}
		}
		found, err := p.who(q, &words)
		if err != nil {
			return err
		}
		for _, f := range found {
			total[f.who] = total[f.who].plus(f.tally)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("asking who fetched %s: %w", EscapeTerminal(q.Module), err)
	}
	settle(total)
	for who, t := range total {
		f := who.fetch(t, words.words)
		if q.Delivered && !f.Delivered() || q.Refused && f.Effect == "allow" {
			continue
		}
		answer.Fetches = append(answer.Fetches, f)
	}
	slices.SortFunc(answer.Fetches, Fetch.compare)
	answer.cut(after, q.Limit)
	return answer, nil
}

// who asks one segment.
func (p *part) who(q WhoQuery, words *lexicon) ([]found, error) {
	if q.Verify {
		return p.whoFromRecords(q, words)
	}
	return p.index.fetches(q.Module, q.Version, words)
}

// whoFromRecords makes the same from the records, each held against the tree's leaves.
func (p *part) whoFromRecords(q WhoQuery, words *lexicon) ([]found, error) {
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
	x.words = *words
	err = p.read(numbers, func(e Entry) error {
		at := (e.Seq - p.first) * tlog.HashSize
		if sealed && e.Leaf != tlog.Hash(hashes[at:at+tlog.HashSize]) {
			return &DamageError{Code: ExitAltered, Epoch: p.epoch, Seq: e.Seq, SeqTo: e.Seq, EventID: eventID(e.Raw), Detail: "its hash is not the one kept when the segment was sealed"}
		}
		b, err := x.parser.parse(e.Raw)
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
	*words = x.words
	var all []found
	for _, f := range x.fetches {
		all = append(all, found{f.who, tally{count: f.count, first: f.t, last: f.t}})
	}
	return all, nil
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
func settle(total map[fetchKey]tally) {
	for who, late := range total {
		if who.flags&fetchLate == 0 {
			continue
		}
		delete(total, who)
		who.flags &^= fetchLate
		total[who] = total[who].plus(late)
		who.flags &^= fetchAborted
		if t, ok := total[who]; ok && t.count > late.count {
			t.count -= late.count
			total[who] = t
		} else {
			delete(total, who)
		}
	}
}

// fetch returns a tally as it is shown.
func (k fetchKey) fetch(t tally, words []string) Fetch {
	f := Fetch{
		Module: words[k.path], Version: words[k.version], Subject: words[k.subject], Issuer: words[k.issuer], Device: words[k.device],
		What: "metadata", Effect: [...]string{"allow", "deny", "error", "error"}[k.flags&3], Aborted: k.flags&fetchAborted != 0,
		Count: t.count, First: time.Unix(0, t.first).UTC(), Last: time.Unix(0, t.last).UTC(),
	}
	if k.flags&fetchZip != 0 {
		f.What = "zip"
	}
	return f
}
