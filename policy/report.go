package policy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// Report is what Test found out about a bundle.
type Report struct {
	Revision string   `json:"revision,omitempty"` // "" where the files could not be read
	Digest   string   `json:"digest,omitempty"`
	State    string   `json:"state,omitempty"`    // step that failed: fetched, built, checked, tested; "" is none
	Failures []string `json:"failures,omitempty"` // each with file and line where it has one; empty: the bundle is good
	Rego     int      `json:"rego_tests"`         // Rego tests that ran
	Golden   int      `json:"golden_decisions"`   // questions of tests/*.yaml that were asked
	Coverage float64  `json:"coverage,omitempty"` // percent of the bundle's own Rego; 0 where it has none, or was not measured
}

// Test takes a bundle through the steps that a gateway takes it through before it activates one of Git: read, build,
// check, and test, up to the first step that fails. library is where `library: default` takes its Rego from. That the
// bundle is bad stands in the report; an error is ctx's alone.
func Test(ctx context.Context, fsys, library fs.FS) (Report, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, trialTimeout, fmt.Errorf("testing took longer than %v", trialTimeout))
	defer cancel()
	r := Report{State: stateFetched}
	b, err := readBundle(fsys, library)
	if err == nil {
		r.Revision, r.Digest, r.State = b.revision, b.digest, stateBuilt
		err = b.build()
	}
	if err == nil {
		err = b.examine(ctx, &r)
	}
	if ctx.Err() != nil {
		return r, fmt.Errorf("testing a bundle: %w", context.Cause(ctx))
	}
	if err == nil {
		r.State = ""
	}
	r.Failures = lines(err)
	return r, nil
}

// examine compiles a built bundle and runs its tests and ours.
func (b *bundle) examine(ctx context.Context, r *Report) error {
	r.State = stateChecked
	m, err := newMeters(nil)
	if err != nil {
		return err
	}
	g, err := compile(ctx, b, make(chan struct{}, 2), m, func(string) {})
	if err != nil {
		return err
	}
	r.State = stateTested
	return b.test(ctx, g, r)
}

// lines are the single mistakes that an error tells of, one line each.
func lines(err error) []string {
	if err == nil {
		return nil
	}
	if failed, ok := errors.AsType[*failedTestsError](err); ok {
		return oneLine(failed.all)
	}
	if errs, ok := errors.AsType[ast.Errors](err); ok {
		all := make([]string, len(errs))
		for i, e := range errs {
			all[i] = e.Message
			if e.Location != nil {
				all[i] = fmt.Sprintf("%s:%d: %s", e.Location.File, e.Location.Row, e.Message)
			}
		}
		return oneLine(all)
	}
	return strings.Split(err.Error(), "\n")
}

func oneLine(texts []string) []string {
	for i, text := range texts {
		texts[i] = strings.Join(strings.Fields(text), " ")
	}
	return texts
}
