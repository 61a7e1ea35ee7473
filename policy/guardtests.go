package policy

import (
	"context"
	"fmt"
	"reflect"

	"github.com/open-policy-agent/opa/v1/ast"
)

// guardTest is a question that every bundle must refuse by itself: the guards in Go hold as well, but a bundle that needs
// them is broken.
type guardTest struct {
	name   string
	entry  string
	change func(*Input)
}

// guardModule is no module of anybody: .invalid is reserved (RFC 2606).
const guardModule = "headgate.invalid/guard/module"

var guardTests = []guardTest{
	{"anonymous is denied", "access", func(in *Input) { in.Subject.Type, in.Subject.ID, in.Subject.Issuer = "anonymous", "", "" }},
	{"private is never public", "access", func(in *Input) { in.Resource.Name = NewName(guardModule, "private") }},
	{"input of another version is denied", "access", func(in *Input) { in.Schema = InputSchema + 1 }},
	{"malware is denied", "release", func(in *Input) { in.Resource.Malware, in.Resource.Known.Malware = "listed", "ok" }},
	{"checksum mismatch is denied", "release", func(in *Input) { in.Resource.Sumdb = "mismatch" }},
	{"input of another version is denied", "release", func(in *Input) { in.Schema = InputSchema + 1 }},
	{"unknown profile is denied", "release", func(in *Input) { in.Context.Profile = "headgate-guard" }},
}

// testGuards asks the entry points themselves, past the guards in Go.
func testGuards(ctx context.Context, g *Generation) error {
	entries := map[string]*entryPoint{"access": g.access, "release": g.release}
	for _, test := range guardTests {
		in := plainInput(guardModule, "public", "v1.0.0", "release")
		test.change(in)
		e := entries[test.entry]
		d, err := e.evaluate(ctx, toTerm(reflect.ValueOf(in).Elem()), nil, oneTest)
		if err != nil {
			return fmt.Errorf("guard test %q of %s: %w", test.name, test.entry, err)
		}
		if d.Effect != Deny {
			return fmt.Errorf("guard test %q of %s: the bundle allows it", test.name, test.entry)
		}
		if err := e.agrees(ctx, in); err != nil {
			return fmt.Errorf("guard test %q: %w", test.name, err)
		}
	}
	for name, e := range entries {
		// That nothing is decided is as good as a denial here: it is 503.
		if d, err := e.evaluate(ctx, ast.NewTerm(ast.NewObject()), nil, oneTest); err == nil && d.Effect != Deny {
			return fmt.Errorf("guard test \"empty input is denied\" of %s: the bundle allows it", name)
		}
	}
	return nil
}
