package audit

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Validate reports what cannot be asked.
func (q WhoQuery) Validate() error {
	_, err := q.cursor()
	return err
}

// cursor reads After; nil is the beginning.
func (q WhoQuery) cursor() (*Fetch, error) {
	if q.Module == "" || q.Delivered && q.Refused || q.Limit < 0 {
		return nil, errors.New("asking who fetched a module: want a module path, and delivered or refused, not both")
	}
	if q.After == "" {
		return nil, nil
	}
	var f Fetch
	text, err := base64.RawURLEncoding.Strict().DecodeString(q.After)
	if err != nil || json.Unmarshal(text, &f) != nil {
		return nil, errors.New("asking who fetched a module: the place to go on from is not one that an answer named")
	}
	return &f, nil
}

// compare orders fetches. What it looks at does not change while the log grows: a page that goes on after a fetch
// neither leaves out nor repeats what was in the log when the first page was asked for.
func (f Fetch) compare(g Fetch) int {
	return cmp.Or(strings.Compare(f.Version, g.Version), f.First.Compare(g.First), strings.Compare(f.Subject, g.Subject),
		strings.Compare(f.Issuer, g.Issuer), strings.Compare(f.Device, g.Device), strings.Compare(f.What, g.What),
		strings.Compare(f.Effect, g.Effect), cmp.Compare(number(f.Aborted), number(g.Aborted)))
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// place is the cursor behind a fetch.
func (f Fetch) place() string {
	f.Module, f.Count, f.Last = "", 0, f.First
	text, err := json.Marshal(f)
	if err != nil {
		panic(fmt.Sprintf("encoding a cursor: %v", err)) // a year beyond 9999, which no clock reads
	}
	return base64.RawURLEncoding.EncodeToString(text)
}

// cut leaves one page of the sorted fetches.
func (a *WhoAnswer) cut(after *Fetch, limit int) {
	if after != nil {
		n, same := slices.BinarySearchFunc(a.Fetches, *after, Fetch.compare)
		if same {
			n++
		}
		a.Fetches = a.Fetches[n:]
	}
	if limit > 0 && len(a.Fetches) > limit {
		a.Fetches = a.Fetches[:limit]
		a.Next = a.Fetches[limit-1].place()
	}
}
