package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/mod/module"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway"
	"github.com/headgate/headgate/policies"
	"github.com/headgate/headgate/policy"
)

// decisionID is a decision's id or its beginning. No module path is like it: those have a dot.
var decisionID = regexp.MustCompile(`^[0-9A-Za-z]{6,32}$`)

// moreDecisions is how many decisions are listed that one id may mean.
const moreDecisions = 20

// An explainedDecision is what policy explain ID prints with --json.
type explainedDecision struct {
	gateway.Found
	*policy.Explained
	Kept    bool           `json:"kept"`              // the policy that answered is there; else the answer is that of today's
	Today   *policy.Answer `json:"today,omitempty"`   // where today's policy answers otherwise
	Present string         `json:"present,omitempty"` // revision of today's policy
}

// explainDecision explains one recorded decision to somebody who may read the log and the state of a gateway.
func explainDecision(ctx context.Context, file, log, id string, asJSON bool, stdout io.Writer) error {
	c, err := loadConfig(file)
	if err != nil {
		return err
	}
	if log == "" {
		log = c.Audit.Dir
	}
	found, recording, err := gateway.FindDecisions(ctx, log, id)
	if err != nil {
		return err
	}
	switch {
	case len(found) == 0:
		return fmt.Errorf("no decision %s in %s: records are kept for %s, and a gateway of a fleet has those that it made itself", id, log, days(cmp.Or(c.Audit.Retention, audit.DefaultRetention)))
	case len(found) > 1:
		return severalDecisions(id, found)
	}
	x := explainedDecision{Found: found[0]}
	if x.Judged {
		if err := x.ask(ctx, c, recording); err != nil {
			return err
		}
	}
	if asJSON {
		err = json.NewEncoder(stdout).Encode(x)
	} else {
		err = x.print(stdout)
	}
	if err == nil && (!x.Judged || x.Was.Effect != policy.Allow) {
		err = &noError{fmt.Errorf("decision %s is a refusal", strings.ToLower(x.ID))}
	}
	return err
}

func severalDecisions(id string, found []gateway.Found) error {
	var text strings.Builder
	for _, f := range found[:min(len(found), moreDecisions)] {
		fmt.Fprintf(&text, "\n  %s  %s  %s %s", f.ID, f.Time.Format(time.RFC3339), f.Action, audit.EscapeTerminal(moduleAt(f)))
	}
	return &useError{fmt.Errorf("%s may be one of %d decisions; say more of its id:%s", id, len(found), text.String())}
}

func moduleAt(f gateway.Found) string { return strings.TrimSuffix(f.Path+"@"+f.Version, "@") }

func days(d time.Duration) string { return fmt.Sprintf("%d days", int(d.Hours())/24) }

// ask asks the policy that answered then, and today's.
func (x *explainedDecision) ask(ctx context.Context, c *config, recording *policy.Recording) error {
	o := policy.Options{Embedded: policies.FS, State: filepath.Join(c.State, "policy"), Key: filepath.Join(c.State, "keys", "policy.key")}
	today, err := policy.StoredBundle(ctx, c.Policy, o, "")
	if err != nil {
		return fmt.Errorf("reading today's policy: %w", err)
	}
	then := today
	if x.Kept = today.Digest() == x.Digest; !x.Kept {
		then, err = policy.StoredBundle(ctx, c.Policy, o, x.Digest)
		switch {
		case err == nil:
			x.Kept = true
		case errors.Is(err, fs.ErrNotExist):
			then = today
		default:
			return fmt.Errorf("reading the policy that answered: %w", err)
		}
	}
	answer, err := then.Explain(ctx, recording, x.Recorded)
	if err != nil {
		return fmt.Errorf("asking about decision %s: %w", x.ID, err)
	}
	x.Explained, x.Present = &answer, today.Revision()
	if then != today {
		now, err := today.Explain(ctx, recording, x.Recorded)
		if err != nil {
			return fmt.Errorf("asking today's policy: %w", err)
		}
		if now.Decision.Effect != answer.Decision.Effect || !slices.Equal(now.Decision.Codes, answer.Decision.Codes) {
			x.Today = &policy.Answer{Effect: now.Decision.Effect, Remedy: now.Decision.Remedy, Codes: now.Decision.Codes}
		}
	}
	return nil
}

func (x *explainedDecision) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	line := func(name, text string) { fmt.Fprintf(t, "%s\t%s\n", name, audit.EscapeTerminal(text)) }
	line("decision", x.ID+" of "+x.Time.Format(time.RFC3339))
	line("asked by", x.Subject)
	line("for", x.Action+" "+moduleAt(x.Found))
	if !x.Judged {
		line("refused", strings.TrimSpace(strings.Join(x.Codes, ", ")+" "+x.Reason)+", before policy was asked")
		return t.Flush()
	}
	if !x.Kept {
		line("note", "policy "+x.Revision+", which answered, is not kept any more; what follows is the answer of "+x.Present)
	}
	if r := x.Resource; r != nil {
		for _, f := range facts(r, x.Feeds, x.Time) {
			line("fact", f)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	revision := x.Revision
	if !x.Kept {
		revision = x.Present
	}
	if err := printVersion(w, module.Version{Path: x.Path, Version: x.Version}, gateway.EvaluationReason{Decision: &x.Decision, Revision: revision}); err != nil {
		return err
	}
	switch {
	case x.Today != nil:
		_, err := fmt.Fprintf(w, "today's policy %s answers otherwise: %s\n", x.Present, strings.TrimSpace(string(x.Today.Effect)+" "+strings.Join(x.Today.Codes, ", ")))
		return err
	case x.Present != x.Revision && x.Kept:
		_, err := fmt.Fprintf(w, "today's policy %s answers the same\n", x.Present)
		return err
	}
	return nil
}

// facts are a line for each fact of a version, in the order of the input's schema: its state, and where it is known or off,
// where it comes from and how old that was at a time.
func facts(r *policy.Resource, feeds []string, at time.Time) []string {
	sources := map[string]string{
		"licences": "from the zip", "retracted": "from the newest go.mod", "deprecated": "from the newest go.mod",
		"sumdb": "from the checksum database", "origin": "from .info and what was first stored",
	}
	if r.FirstSeenDay > 0 {
		sources["age"] = "first seen " + dayText(r.FirstSeenDay)
	}
	for _, feed := range feeds {
		name, rest, _ := strings.Cut(feed, " ")
		digest, found, _ := strings.Cut(rest, " ")
		sources[name] = "from feed " + name + " " + digest
		if t, err := time.Parse(time.RFC3339, found); err == nil {
			sources[name] += ", " + at.Sub(t).Round(time.Second).String() + " old then"
		}
	}
	sources["lookalike"] = sources["popularity"] // whose names it is held against
	v := reflect.ValueOf(r.Known)
	list := make([]string, v.NumField())
	for i := range list {
		name := v.Type().Field(i).Tag.Get("json")
		list[i] = name + " " + v.Field(i).String()
		if source := sources[name]; source != "" && v.Field(i).String() != "off" {
			list[i] += ", " + source
		}
	}
	return list
}
