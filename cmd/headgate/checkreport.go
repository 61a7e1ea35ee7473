package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway"
	"github.com/headgate/headgate/policy"
)

// A checkReport is what check found out.
type checkReport struct {
	Asked    string           `json:"asked"`  // the gateway's URL, or the bundle's folder
	Policy   string           `json:"policy"` // its revision
	Checked  int              `json:"checked"`
	Refused  int              `json:"refused"`
	Warned   int              `json:"warned"`
	Failed   int              `json:"failed"` // without an answer
	Versions []checkedVersion `json:"versions"`
}

// A checkedVersion is what policy would answer about a version.
type checkedVersion struct {
	Module        string       `json:"module"`
	Version       string       `json:"version"`
	ModOnly       bool         `json:"mod_only,omitempty"` // its go.mod alone is needed
	File          string       `json:"file"`
	Line          int          `json:"line"`
	Effect        string       `json:"effect"` // allow, deny, error
	Remedy        string       `json:"remedy,omitempty"`
	Reasons       []findingOf  `json:"reasons,omitempty"`
	Warnings      []findingOf  `json:"warnings,omitempty"`
	WorksNow      string       `json:"works_now,omitempty"`      // nearest version that is fit
	AvailableFrom string       `json:"available_from,omitempty"` // UTC day
	Waiver        *policy.Need `json:"waiver,omitempty"`         // what would allow it
	Text          string       `json:"text,omitempty"`           // the refusal as the go command shows it; why there is no answer
}

// A findingOf is one reason or warning.
type findingOf struct {
	Code string `json:"code"`
	Rule string `json:"rule"`
	Text string `json:"text"`
	Doc  string `json:"doc,omitempty"`
}

func newCheckReport(asked string, needs []need, answers []gateway.EvaluationAnswer) *checkReport {
	r := &checkReport{Asked: asked, Checked: len(needs), Versions: make([]checkedVersion, 0, len(needs))}
	for i, n := range needs {
		v := newCheckedVersion(n, answers[i])
		r.Policy = orElse(r.Policy, answers[i].Context.Revision)
		switch {
		case v.Effect == "error":
			r.Failed++
		case v.Effect == string(policy.Deny):
			r.Refused++
		case len(v.Warnings) > 0:
			r.Warned++
		}
		r.Versions = append(r.Versions, v)
	}
	return r
}

func newCheckedVersion(n need, a gateway.EvaluationAnswer) checkedVersion {
	v := checkedVersion{Module: n.Path, Version: n.Version.Version, ModOnly: n.modOnly, File: n.file, Line: n.line}
	if e := a.Context.Error; e != nil {
		v.Effect, v.Text = "error", e.Code+": "+e.Message
		return v
	}
	d := a.Context.Decision
	v.Effect, v.Reasons, v.Warnings = string(policy.Allow), findingsOf(d.Reasons), findingsOf(d.Warnings)
	if a.Decision {
		return v
	}
	v.Effect, v.Remedy, v.Text = string(policy.Deny), string(d.Remedy), a.Context.Text
	v.WorksNow = orElse(a.Context.WorksNow, d.Advice.UpgradeTo)
	if day := d.Advice.AvailableFromDay; day > 0 {
		v.AvailableFrom = time.Unix(int64(day)*24*60*60, 0).UTC().Format(time.DateOnly)
	}
	if d.Advice.Waiver.Code != "" {
		v.Waiver = &d.Advice.Waiver
	}
	return v
}

func findingsOf(reasons []policy.Reason) []findingOf {
	var all []findingOf
	for _, r := range reasons {
		all = append(all, findingOf{Code: r.Code, Rule: r.Rule, Text: r.Sentence(), Doc: r.Doc})
	}
	return all
}

func (v checkedVersion) name() string {
	if v.Version == "" {
		return "packages"
	}
	return v.Module + "@" + v.Version
}

// lines are the refusal without the line that names the version, and without that of a decision that nothing was refused by.
func (v checkedVersion) lines() []string {
	return slices.DeleteFunc(strings.Split(strings.TrimSpace(v.Text), "\n"), func(line string) bool {
		return line == v.name() || strings.HasPrefix(line, "decision ")
	})
}

// print writes the report for people: each line begins with its place, as those of compilers do.
func (r *checkReport) print(w io.Writer) error {
	var b strings.Builder
	for _, v := range r.Versions {
		at := fmt.Sprintf("%s:%d: %s", v.File, v.Line, v.name())
		switch v.Effect {
		case "error":
			fmt.Fprintf(&b, "%s: no answer: %s\n", at, audit.EscapeTerminal(v.Text))
		case string(policy.Deny):
			fmt.Fprintf(&b, "%s is refused\n", at)
			for _, line := range v.lines() {
				fmt.Fprintf(&b, "    %s\n", audit.EscapeTerminal(line))
			}
		}
		for _, f := range v.Warnings {
			fmt.Fprintf(&b, "%s: warning %s: %s\n", at, f.Code, audit.EscapeTerminal(f.Text))
		}
	}
	fmt.Fprintf(&b, "%d versions: %d refused, %d with warnings, %d without an answer (policy %s of %s)\n",
		r.Checked, r.Refused, r.Warned, r.Failed, orElse(r.Policy, "unknown"), r.Asked)
	_, err := io.WriteString(w, b.String())
	return err
}

// verdict is the report as an exit code: that something is refused is certain, whatever had no answer.
func (r *checkReport) verdict() error {
	switch {
	case r.Refused > 0:
		return &noError{fmt.Errorf("%d of %d versions are refused", r.Refused, r.Checked)}
	case r.Failed > 0:
		return errors.New("some versions have no answer; see above")
	}
	return nil
}

// junit is the report as a suite: a case for each version.
func (r *checkReport) junit() *junitSuites {
	suite := junitSuite{Name: "headgate check"}
	for _, v := range r.Versions {
		c := junitCase{Class: v.File, Name: v.name()}
		switch v.Effect {
		case "error":
			c.Error = &junitFault{Type: "error", Message: v.Text}
		case string(policy.Deny):
			c.Failure = &junitFault{Type: "refused", Message: "policy refuses it", Text: v.Text}
			if len(v.Reasons) > 0 {
				c.Failure.Type, c.Failure.Message = v.Reasons[0].Code, v.Reasons[0].Text
			}
		}
		for _, f := range v.Warnings {
			c.Out += f.Code + ": " + f.Text + "\n"
		}
		suite.add(c)
	}
	return newJUnit(suite)
}
