package gateway

import (
	"errors"
	"sync"
	"time"

	"github.com/headgate/headgate/audit"
)

const (
	// refusalsPerMinute is how many module requests of one subject are refused in a minute, each with a decision of its own.
	// A build in which every one of a thousand modules is refused, list, info and go.mod, stays below it.
	refusalsPerMinute = 3000
	// refusalsPerAddress is the same for one address whose clients do not prove who they are; many may share it.
	refusalsPerAddress = 10 * refusalsPerMinute
	refusedMost        = 1 << 14 // subjects that are counted in one minute; further ones meet no limit
)

// errOften means that a subject was refused so often in this minute that it is not judged any more.
var errOften = errors.New("too many refusals in a minute")

// A requester is who meets a limit: a subject that proved who it is, else an address. What others claim to be counts
// against nobody.
type requester struct{ issuer, id, ip string }

func requesterOf(x *exchange, proved bool) requester {
	if proved && x.rec.Subject.ID != "" {
		return requester{issuer: x.rec.Subject.Issuer, id: x.rec.Subject.ID}
	}
	return requester{ip: x.rec.Client.IP}
}

// oftenRefused counts refusals, so that a client that asks on and on for what it may not have fills neither the log nor the
// processors. What it is refused beyond the limit is recorded with counts.
type oftenRefused struct {
	*folder[requester]
	log *audit.Log

	mu    sync.Mutex // guards all below
	began time.Time
	count map[requester]int
}

func newOftenRefused(log *audit.Log) *oftenRefused {
	o := &oftenRefused{log: log, count: map[requester]int{}}
	o.folder = newFolder(o.write, func(requester) requester { return requester{} })
	return o
}

// refused counts one refusal.
func (o *oftenRefused) refused(who requester, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.turn(now)
	if _, known := o.count[who]; known || len(o.count) < refusedMost {
		o.count[who]++
	}
}

// over tells whether somebody was refused too often.
func (o *oftenRefused) over(who requester, now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.turn(now)
	if who.id == "" {
		return o.count[who] >= refusalsPerAddress
	}
	return o.count[who] >= refusalsPerMinute
}

func (o *oftenRefused) turn(now time.Time) {
	if now.Sub(o.began) >= time.Minute {
		o.began = now
		clear(o.count)
	}
}

func (o *oftenRefused) write(who requester, count int64) {
	rec := audit.Begin("")
	rec.Kind, rec.Action, rec.Severity, rec.Count = audit.KindAuth, "refused.often", 4, count
	rec.Subject = audit.Subject{ID: who.id, Issuer: who.issuer}
	rec.Client = audit.Client{IP: who.ip}
	rec.Decision = audit.Decision{Effect: "deny", Stage: "limit", Codes: []string{"RATE"}, Reason: errOften.Error(), Status: 429}
	o.log.Note(rec)
}
