package identity

import (
	"cmp"
	"slices"
	"time"
)

// A Class is the kind of a credential. For Headgate tokens it stands in the text.
type Class string

// The classes of Headgate tokens; ClassJWT is what an issuer signed, ClassSession a browser that signed in.
const (
	ClassPerson Class = "hu"
	ClassCI     Class = "ci"
	ClassAgent  Class = "ag"
	ClassAdmin  Class = "ad"
	ClassJWT    Class = "jwt"

	ClassSession Class = "session"
)

// The action classes that a scope can hold. The first three are policy's classes
// of module requests.
const (
	ActionDiscover = "discover" // list, latest, query, info
	ActionMetadata = "metadata" // mod, checksum database
	ActionContent  = "content"  // zip
	ActionMint     = "mint"     // tokens for oneself, narrower and no longer
	ActionAdmin    = "admin"    // the administration API
	ActionAudit    = "audit"    // reading the audit log, which administrators may not by themselves
)

// moduleActions are what a module request can be.
var moduleActions = []string{ActionContent, ActionDiscover, ActionMetadata}

// actions is the most that a class can do, whatever a scope says. An
// administrator's token fetches no module, and a job's token mints nothing.
func (c Class) actions() []string {
	switch c {
	case ClassPerson, ClassJWT:
		return append(slices.Clone(moduleActions), ActionMint)
	case ClassCI, ClassAgent:
		return moduleActions
	case ClassAdmin:
		return []string{ActionAdmin, ActionAudit}
	}
	return nil
}

// idle is how long a token of a person may lie unused before it is refused.
const idle = 14 * 24 * time.Hour

// A kind is a row of the table of lives: a class, for jobs how it was got, and for people whether it is bound to a device.
type kind int

const (
	kindPerson kind = iota
	kindBound
	kindCI
	kindJob
	kindAgent
	kindAdmin
)

// lives holds the life that a token has by default, and the most it can have.
var lives = [...]struct{ normal, ceiling time.Duration }{
	kindPerson: {7 * 24 * time.Hour, 30 * 24 * time.Hour},
	kindBound:  {30 * 24 * time.Hour, 90 * 24 * time.Hour},
	kindCI:     {30 * 24 * time.Hour, 90 * 24 * time.Hour},
	kindJob:    {30 * time.Minute, time.Hour},
	kindAgent:  {15 * time.Minute, time.Hour},
	kindAdmin:  {time.Hour, 8 * time.Hour},
}

func kindOf(c Class, exchanged, bound bool) kind {
	switch {
	case c == ClassPerson && bound:
		return kindBound
	case c == ClassCI && exchanged:
		return kindJob
	case c == ClassCI:
		return kindCI
	case c == ClassAgent:
		return kindAgent
	case c == ClassAdmin:
		return kindAdmin
	}
	return kindPerson
}

// ceiling is the longest life of a kind under this configuration.
func (c Ceilings) ceiling(k kind) time.Duration {
	configured := [...]time.Duration{kindPerson: c.Person, kindBound: c.Device, kindCI: c.CI, kindJob: c.Job, kindAgent: c.Agent, kindAdmin: c.Admin}
	return cmp.Or(configured[k], lives[k].ceiling)
}

// normal is the life of a kind when none is asked for.
func (c Ceilings) normal(k kind) time.Duration {
	return min(lives[k].normal, c.ceiling(k))
}
