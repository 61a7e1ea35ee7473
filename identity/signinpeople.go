package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/sync/errgroup"
)

const (
	// A change at the issuer is in force within recheckEvery, plus a tick, plus what other nodes take to learn of it:
	// ten minutes at most.
	recheckEvery = 7 * time.Minute
	recheckTick  = time.Minute
	recheckLease = 2 * time.Minute // how long a node has for the people that it took on
	recheckBatch = 256             // people in one tick
	recheckSlots = 8               // asked about at once
)

// errDisowned means that the issuer answered, and does not know the person any more.
var errDisowned = errors.New("the issuer no longer knows this person")

// A personRow is somebody who signed in here, as the database holds them.
type personRow struct {
	subject Subject
	asOf    int64
	kept    string // sealed kept; empty: the issuer cannot be asked again
	until   int64  // how long it can be asked, 0: as long as it likes
	checked int64
	refused int64 // since when the issuer knows them no longer, 0: it does
}

func (p personRow) key() subjectKey { return subjectKey{p.subject.Issuer, p.subject.ID} }

// kept is what an issuer can be asked again with. It is sealed wherever it lies.
type kept struct {
	Refresh string `json:"refresh,omitempty"`
	Access  string `json:"access,omitempty"`
	Ends    int64  `json:"ends,omitempty"` // of Access
}

func keptPlace(k subjectKey) string { return "kept " + k.issuer + " " + k.id }

// keep seals what a sign-in brought, and says until when the issuer can be asked with it; 0 is without end.
func (s *Service) keep(v *verified, t *oauth2.Token) (string, int64) {
	k := kept{Refresh: t.RefreshToken, Access: t.AccessToken, Ends: toUnix(t.Expiry)}
	until := int64(0)
	if k.Refresh == "" {
		until = max(v.expires.Unix(), k.Ends)
	}
	text, err := json.Marshal(k)
	if err != nil {
		panic("identity: encoding text: " + err.Error()) // of plain fields it cannot fail
	}
	return s.peppers.sealed(text, keptPlace(subjectKey{v.subject.Issuer, v.subject.ID})), until
}

// refusedPeople are those whom their issuers no longer know, since when. It is immutable.
type refusedPeople map[subjectKey]int64

// refusedSince tells whether the issuer disowned a person at or after a moment.
func (s *Service) refusedSince(sub Subject, moment time.Time) bool {
	refused := *s.refused.Load()
	if len(refused) == 0 {
		return false
	}
	at, ok := refused[subjectKey{sub.Issuer, sub.ID}]
	return ok && at >= moment.Unix()
}

// learnPerson brings what an issuer said of a person into force here.
func (s *Service) learnPerson(p personRow) {
	s.outcasts.Lock()
	old := *s.refused.Load()
	if old[p.key()] != p.refused {
		next := maps.Clone(old)
		delete(next, p.key())
		if p.refused != 0 {
			next[p.key()] = p.refused
		}
		s.refused.Store(&next)
	}
	s.outcasts.Unlock()
	s.tokens.asserted(p.subject, p.asOf)
}

// learnPeople learns what other nodes heard from issuers behind a place of the clock.
func (s *Service) learnPeople(ctx context.Context, seen int64) error {
	people, err := s.store.peopleSince(ctx, seen)
	if err != nil {
		return err
	}
	for _, p := range people {
		s.learnPerson(p)
	}
	return nil
}

// recheck asks issuers about the people who have tokens or sessions here, until ctx ends. Nodes share the work.
func (s *Service) recheck(ctx context.Context) {
	tick := time.NewTicker(recheckTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		people, err := s.store.takePeople(ctx, now, recheckBatch)
		if err != nil && ctx.Err() == nil {
			s.log.LogAttrs(ctx, slog.LevelWarn, "people are not asked about, it is tried again", slog.Any("err", err))
		}
		var group errgroup.Group
		group.SetLimit(recheckSlots)
		for _, p := range people {
			group.Go(func() error { s.recheckPerson(ctx, p); return nil })
		}
		_ = group.Wait() // nothing in it fails: each logs its own trouble
	}
}

// recheckPerson asks about one person and brings the answer into force.
func (s *Service) recheckPerson(ctx context.Context, old personRow) {
	p, err := s.askAgain(ctx, old)
	now := time.Now()
	who := slog.Group("person", slog.String("issuer", old.subject.Issuer), slog.String("id", old.subject.ID))
	switch {
	case ctx.Err() != nil:
		return
	case errors.Is(err, errDisowned):
		p, p.refused, p.kept = old, now.Unix(), ""
		s.log.LogAttrs(ctx, slog.LevelInfo, "issuer no longer knows a person, who is refused from now on", who)
	case err != nil && now.Sub(time.Unix(old.checked, 0)) > stalePerson && old.refused == 0:
		p, p.refused = old, now.Unix()
		s.log.LogAttrs(ctx, slog.LevelWarn, "issuer could not be asked for too long, its person is refused", who, slog.Any("err", err))
	case err != nil:
		s.log.LogAttrs(ctx, slog.LevelDebug, "issuer could not be asked about a person", who, slog.Any("err", err))
		return // the lease ends, and it is tried again
	default:
		p.asOf, p.checked, p.refused = now.Unix(), now.Unix(), 0
	}
	if err := s.store.putPerson(ctx, p, old); err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "what an issuer said of a person is not stored", who, slog.Any("err", err))
	}
	s.learnPerson(p)
}

// askAgain gives a person as the issuer describes them now.
func (s *Service) askAgain(ctx context.Context, p personRow) (personRow, error) {
	i := s.issuers[p.subject.Issuer]
	if i == nil {
		return p, fmt.Errorf("asking about a person: %w: the issuer is not configured any more", errDisowned)
	}
	text, err := s.peppers.unsealed(p.kept, keptPlace(p.key()))
	if err != nil {
		return p, err
	}
	var k kept
	if err := json.Unmarshal(text, &k); err != nil {
		return p, fmt.Errorf("reading what was kept of a sign-in: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	token := &oauth2.Token{AccessToken: k.Access, Expiry: fromUnix(k.Ends)}
	if k.Refresh != "" {
		return s.refresh(ctx, i, p, k)
	}
	if sub, asked, err := i.userInfo(ctx, token, p.subject.ID); err != nil {
		return p, err
	} else if asked {
		p.subject = sub
	}
	return p, nil
}

// refresh uses a refresh token (RFC 6749, 6). What the issuer says is in the new ID token, or in user info.
func (s *Service) refresh(ctx context.Context, i *issuer, p personRow, k kept) (personRow, error) {
	conf, refused := i.oauth("")
	if refused != nil {
		return p, refused
	}
	token, err := conf.TokenSource(i.context(ctx), &oauth2.Token{RefreshToken: k.Refresh}).Token()
	if e, ok := errors.AsType[*oauth2.RetrieveError](err); ok && e.ErrorCode == "invalid_grant" {
		return p, fmt.Errorf("refreshing: %w", errDisowned)
	}
	if err != nil {
		return p, i.exchangeFailed(err)
	}
	v := &verified{subject: p.subject}
	if raw, _ := token.Extra("id_token").(string); raw != "" {
		if v, refused = i.described(ctx, raw, token, ""); refused != nil {
			return p, refused
		}
		if v.subject.ID != p.subject.ID { // OpenID Connect Core 1.0, 12.2
			return p, fmt.Errorf("refreshing: the issuer answers with another person: %w", errDisowned)
		}
	} else if sub, asked, err := i.userInfo(ctx, token, p.subject.ID); err != nil {
		return p, err
	} else if asked {
		v.subject = sub
	}
	p.subject = v.subject
	p.kept, p.until = s.keep(v, token)
	return p, nil
}

// userInfo asks the issuer about the holder of an access token (OpenID Connect Core 1.0, 5.3); asked is false where it
// has no such endpoint, or the token is over.
func (i *issuer) userInfo(ctx context.Context, token *oauth2.Token, id string) (sub Subject, asked bool, err error) {
	doc := i.keys.found.Load()
	if doc == nil || !overHTTPS(doc.UserInfo) || !token.Valid() {
		return Subject{}, false, nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, doc.UserInfo, nil)
	if err != nil {
		return Subject{}, false, fmt.Errorf("asking %s about a person: %w", i.cfg.Name, err)
	}
	token.SetAuthHeader(req)
	var claims map[string]json.RawMessage
	if err := i.keys.answer(req, &claims); err != nil {
		if status, ok := errors.AsType[*statusError](err); ok && (status.status == http.StatusUnauthorized || status.status == http.StatusForbidden) {
			return Subject{}, false, fmt.Errorf("asking %s about a person: %w", i.cfg.Name, errDisowned)
		}
		return Subject{}, false, err
	}
	if sub, err = i.subject(claims); err != nil {
		return Subject{}, false, fmt.Errorf("asking %s about a person: %w", i.cfg.Name, err)
	}
	if sub.ID != id {
		return Subject{}, false, fmt.Errorf("asking %s about a person: it answers with another one: %w", i.cfg.Name, errDisowned)
	}
	return sub, true, nil
}
