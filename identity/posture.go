package identity

import (
	"strings"
	"time"
)

// A Fact is one posture fact of a device. Without a time of observation, or older than its feed's limit, it is unknown.
type Fact struct {
	State      string    `json:"state"` // ok, fail, unknown
	Value      string    `json:"value"` // as it was reported
	Source     string    `json:"source"`
	ObservedAt time.Time `json:"observed_at,omitzero"`
}

// facts are all that is reported of a device; of several reports of one fact the newest counts.
func (v *deviceView) facts(id string, now time.Time) map[string]Fact {
	var facts map[string]Fact
	for _, f := range v.feeds {
		c := f.good.Load()
		if c == nil {
			continue
		}
		stale := f.current(now) == nil
		for _, r := range c.rows[id].facts {
			if facts == nil {
				facts = map[string]Fact{}
			}
			if known, ok := facts[r.name]; ok && known.ObservedAt.Unix() > r.at {
				continue
			}
			fact := Fact{State: stateOf(r.value), Value: r.value, Source: f.cfg.Name, ObservedAt: fromUnix(r.at)}
			if stale || r.at == 0 || now.Sub(fact.ObservedAt) > f.cfg.MaxAge {
				fact.State = "unknown"
			}
			facts[r.name] = fact
		}
	}
	return facts
}

// stateOf reads a value as feeds write it.
func stateOf(value string) string {
	switch strings.ToLower(value) {
	case "true", "yes", "ok", "1", "on", "enabled", "compliant":
		return "ok"
	case "false", "no", "fail", "0", "off", "disabled", "noncompliant":
		return "fail"
	}
	return "unknown"
}

// judgePosture joins the facts. They refuse nothing by themselves: whether one is needed is policy's to say, and the
// required ones make a device trusted.
func (v *deviceView) judgePosture(p *proof, require []string, now time.Time) {
	p.device.Facts = v.facts(p.device.ID, now)
	result := "ok"
	for _, name := range require {
		switch p.device.Facts[name].State {
		case "ok":
		case "fail":
			result = "fail"
		default:
			if result == "ok" {
				result = "unknown"
			}
		}
	}
	if len(require) == 0 {
		result = "none"
	}
	p.note(stepPosture, result)
}

// Oldest is the age of the oldest fact that is known, 0 where there is none.
func (d Device) Oldest(now time.Time) time.Duration {
	var oldest time.Duration
	for _, f := range d.Facts {
		if !f.ObservedAt.IsZero() {
			oldest = max(oldest, now.Sub(f.ObservedAt))
		}
	}
	return oldest
}
