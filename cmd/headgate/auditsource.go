package main

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway"
)

// An auditLog is a log that can be asked: the one in a folder of this machine, or a gateway's over its API.
type auditLog interface {
	Who(ctx context.Context, q audit.WhoQuery) (*audit.WhoAnswer, error)
	Search(ctx context.Context, q audit.SearchQuery, fn func(audit.Position, audit.Entry) error) (*audit.SearchEnd, error)
	Prove(ctx context.Context, record string) ([]byte, error)
	ProveSince(ctx context.Context, checkpoint []byte) ([]byte, error)
}

// An auditSource is the flags that say which log is asked.
type auditSource struct {
	dir    string
	remote remote
}

func (s *auditSource) flags(cmd *cobra.Command) {
	set := cmd.Flags()
	set.StringVar(&s.dir, "dir", "", "audit `FOLDER` (default: the configuration's)")
	set.StringVar(&s.remote.url, "url", "", "ask the gateway at this `URL` over https instead of reading a folder; it records each question")
	set.StringVar(&s.remote.tokenFile, "token-file", "", "`FILE` with an auditor's token, for --url")
	set.StringVar(&s.remote.caFile, "ca", "", "`FILE` with the CA of --url (default: the system's)")
}

func (s *auditSource) open() (auditLog, error) {
	if s.remote.url != "" {
		if s.dir != "" {
			return nil, &useError{errors.New("--dir and --url exclude one another")}
		}
		c, err := s.remote.far()
		return farLog{c}, err
	}
	dir, err := auditDir(s.remote.config, s.dir)
	return nearLog{audit.NewArchive(dir)}, err
}

// A nearLog is the log in a folder.
type nearLog struct{ *audit.Archive }

func (l nearLog) Prove(ctx context.Context, record string) ([]byte, error) {
	at, err := l.Locate(ctx, record)
	if errors.Is(err, audit.ErrName) {
		return nil, &useError{err}
	}
	var text []byte
	if err == nil {
		text, err = l.Archive.Prove(ctx, at)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &noError{err}
	}
	return text, err
}

func (l nearLog) ProveSince(_ context.Context, checkpoint []byte) ([]byte, error) {
	text, err := l.Archive.ProveSince(checkpoint)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &noError{err}
	}
	return text, err
}

// A farLog is the log of a gateway.
type farLog struct{ *client }

// farPage is how many answers one call asks for.
const farPage = 1000

// ask makes one call and reads its answer into out; nothing there is the answer no.
func (l farLog) ask(ctx context.Context, path string, query url.Values, out any) error {
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	return absent(l.call(ctx, http.MethodGet, "/-/api/v1/audit/"+path, nil, out))
}

func absent(err error) error {
	if r, ok := errors.AsType[*refusal](err); ok && r.status == http.StatusNotFound {
		return &noError{err}
	}
	return err
}

// found is damage as the error that it is.
func found(d *audit.DamageError, err error) error {
	if err == nil && d != nil {
		return d
	}
	return err
}

// setAll sets the parameters that are not empty.
func setAll(query url.Values, pairs ...string) {
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			query.Set(pairs[i], pairs[i+1])
		}
	}
}

func (l farLog) Who(ctx context.Context, q audit.WhoQuery) (*audit.WhoAnswer, error) {
	query := url.Values{"limit": {strconv.Itoa(farPage)}}
	setAll(query, "module", q.Module, "version", q.Version)
	for key, set := range map[string]bool{"delivered": q.Delivered, "refused": q.Refused, "verify": q.Verify} {
		if set {
			query.Set(key, "true")
		}
	}
	var all *audit.WhoAnswer
	for {
		var page gateway.AuditFetches
		if err := l.ask(ctx, "who", query, &page); err != nil || page.Damage != nil {
			return nil, found(page.Damage, err)
		}
		if page.WhoAnswer == nil {
			return nil, errors.New("reading the gateway's answer: it holds none")
		}
		if all != nil {
			page.Fetches = append(all.Fetches, page.Fetches...)
		}
		all = page.WhoAnswer
		if all.Next == "" {
			return all, nil
		}
		query.Set("after", all.Next)
	}
}

func (l farLog) Search(ctx context.Context, q audit.SearchQuery, fn func(audit.Position, audit.Entry) error) (*audit.SearchEnd, error) {
	query := url.Values{}
	setAll(query, "subject", q.Subject, "device", q.Device, "module", q.Module, "version", q.Version, "code", q.Code, "effect", q.Effect,
		"id", q.EventID, "since", word(q.Since), "until", word(q.Until))
	if q.Before != (audit.Position{}) {
		query.Set("before", q.Before.String())
	}
	end := &audit.SearchEnd{}
	for {
		limit := farPage
		if q.Limit > 0 {
			limit = min(limit, q.Limit-end.Found)
		}
		query.Set("limit", strconv.Itoa(limit))
		var page gateway.AuditRecords
		if err := l.ask(ctx, "search", query, &page); err != nil || page.Damage != nil {
			return nil, found(page.Damage, err)
		}
		for _, r := range page.Records {
			at, err := audit.ParsePosition(r.At)
			if err == nil {
				err = fn(at, audit.Entry{Seq: at.Seq, Raw: r.Record})
			}
			if err != nil {
				return nil, err
			}
			end.Last = at
		}
		end.Found += len(page.Records)
		end.Covered, end.More = page.Covered, page.Next != ""
		if !end.More || q.Limit > 0 && end.Found >= q.Limit {
			return end, nil
		}
		query.Set("before", page.Next)
	}
}

// word is a time as the API takes it.
func word(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Format(time.RFC3339Nano)
}

func (l farLog) Prove(ctx context.Context, record string) ([]byte, error) {
	var p gateway.AuditProof
	err := l.ask(ctx, "proof", url.Values{"record": {record}}, &p)
	return []byte(p.Proof), found(p.Damage, err)
}

func (l farLog) ProveSince(ctx context.Context, checkpoint []byte) ([]byte, error) {
	var p gateway.AuditProof
	err := l.call(ctx, http.MethodPost, "/-/api/v1/audit/consistency", gateway.ConsistencyRequest{Since: string(checkpoint)}, &p)
	return []byte(p.Proof), found(p.Damage, absent(err))
}
