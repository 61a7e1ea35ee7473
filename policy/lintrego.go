package policy

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// rego looks at the bundle's own Rego, compiled: names are resolved there.
func (l *linter) rego(ctx context.Context, b *bundle) error {
	m, err := newMeters(nil)
	if err != nil {
		return err
	}
	g, err := compile(ctx, b, make(chan struct{}, 1), m, func(string) {})
	if err != nil {
		return err
	}
	compiler := ast.NewCompiler().WithCapabilities(capabilities()).WithSchemas(schemas()).WithUseTypeCheckAnnotations(true).WithPathConflictsCheck(b.hasData)
	compiler.Compile(b.modules)
	if compiler.Failed() {
		return compiler.Errors
	}
	own := regoLinter{l, compiler}
	for name, module := range compiler.Modules {
		if b.manifest.Library == "default" && !strings.HasPrefix(name, "site/") {
			continue
		}
		own.negations(module)
		own.refs(module)
		own.reasons(b.modules[name])
		own.exactPaths(module)
	}
	own.keys(b, g)
	return nil
}

type regoLinter struct {
	*linter
	compiler *ast.Compiler
}

func (l regoLinter) at(where *ast.Location, level, check, text, fix string) {
	lint := Lint{File: "bundle.yaml", Line: 1, Level: level, Check: check, Text: text, Fix: fix}
	if where != nil && where.File != "" {
		lint.File, lint.Line = where.File, where.Row
	}
	if !slices.Contains(l.found, lint) {
		l.found = append(l.found, lint)
	}
}

// negations finds `not f(x)` where f may be undefined: with x undefined, or a case that f does not name, the negation holds,
// and a rule that should have been careful allows.
func (l regoLinter) negations(module *ast.Module) {
	ast.WalkExprs(module, func(e *ast.Expr) bool {
		if !e.Negated || !e.IsCall() || !e.Operator().HasPrefix(ast.DefaultRootRef) {
			return false
		}
		rules := l.compiler.GetRulesExact(e.Operator())
		if len(rules) > 0 && !slices.ContainsFunc(rules, func(r *ast.Rule) bool { return r.Default }) {
			name := e.Operator().String()
			l.at(e.Location, LintError, "undefined-not", fmt.Sprintf("not %s(…) holds when what it is given is undefined", name),
				fmt.Sprintf("give it a default: default %s(_) := false", name[strings.LastIndexByte(name, '.')+1:]))
		}
		return false
	})
}

// refs finds what makes keys wide, and effects that depend on the mode.
func (l regoLinter) refs(module *ast.Module) {
	mode := ast.MustParseRef("input.context.mode")
	ast.WalkRefs(module, func(ref ast.Ref) bool {
		where := ref[0].Location
		switch {
		case ref.Equal(ast.InputRootRef):
			l.at(where, LintError, "wide-key", "input as a whole is a value here, so every answer has a key of its own", "name the fields that are read")
		case ref.HasPrefix(mode):
			l.at(where, LintError, "mode", "an answer that depends on context.mode is another one in a what-if question", "leave it out")
		}
		return false
	})
}

// reasons wants a title at each package or rule that adds to findings.
func (l regoLinter) reasons(module *ast.Module) {
	titled := map[string]bool{}
	for _, a := range module.Annotations {
		if a.Title == "" && a.Description == "" {
			continue
		}
		if a.Scope == "package" || a.Scope == "subpackages" {
			return
		}
		titled[fmt.Sprint(a.Scope, a.EndLoc().Row+1)] = true
	}
	for _, rule := range module.Rules {
		if ref := rule.Head.Ref(); len(ref) == 0 || !ref[0].Equal(ast.VarTerm("findings")) || titled[fmt.Sprint("rule", rule.Location.Row)] {
			continue
		}
		l.at(rule.Location, LintError, "no-metadata", "gives reasons, and no annotation says what about", "put # METADATA with a title before the rule or the package")
	}
}

// exactPaths finds comparisons of the path with one path: the go command asks for prefixes of packages too, so an allow
// has to cover what is below it.
func (l regoLinter) exactPaths(module *ast.Module) {
	path := ast.MustParseRef("input.resource.path")
	ast.WalkExprs(module, func(e *ast.Expr) bool {
		if !e.IsEquality() && !e.IsCall() || e.Negated || len(e.Operands()) != 2 {
			return false
		}
		if op := e.Operator(); !op.Equal(ast.Equality.Ref()) && !op.Equal(ast.Equal.Ref()) {
			return false
		}
		for i, o := range e.Operands() {
			_, literal := e.Operand(1 - i).Value.(ast.String)
			if ref, ok := o.Value.(ast.Ref); ok && literal && ref.Equal(path) {
				l.at(e.Location, LintWarning, "exact-path", "holds for one path and not for what is below it, where the go command looks as well", "look the path up among input.resource.prefixes")
			}
		}
		return false
	})
}

// keys finds reads that make answers wide or personal.
func (l regoLinter) keys(b *bundle, g *Generation) {
	for _, e := range []*entryPoint{g.access, g.release} {
		for _, path := range e.reads.paths {
			where := l.reader(b, path)
			if path != "input" && wide(path) { // the whole input was told of where it is read
				l.at(where, LintWarning, "wide-key", fmt.Sprintf("%s reads %s as a whole", e.name, path), "name the fields that are read")
			}
			if e.name != "release" {
				continue
			}
			switch {
			case path == "input.subject.id" || path == "input.subject":
				l.at(where, LintError, "personal-key", "release reads the subject's id, so nobody shares an answer", "give a team a profile, and scope the rule by it")
			case strings.HasPrefix(path, "input.subject.") || strings.HasPrefix(path, "input.device"):
				l.at(where, LintWarning, "personal-key", fmt.Sprintf("release reads %s, so fewer share an answer", path), "give a team a profile, and scope the rule by it")
			}
		}
	}
}

// wide tells whether a path of the input is a struct: every field of it is in the key.
func wide(path string) bool {
	t := reflect.TypeFor[Input]()
	for _, name := range strings.Split(path, ".")[1:] {
		if t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		if t.Kind() == reflect.Map {
			t = t.Elem()
			continue
		}
		if t.Kind() != reflect.Struct {
			return false
		}
		for _, f := range fieldsOf(t) {
			if f.name == name {
				t = t.FieldByIndex(f.index).Type
				break
			}
		}
	}
	return t.Kind() == reflect.Struct
}

// reader is the first place in the bundle's own Rego that reads a path, nil where none does.
func (l regoLinter) reader(b *bundle, path string) (where *ast.Location) {
	ref := ast.MustParseRef(path)
	for name, module := range l.compiler.Modules {
		if b.manifest.Library == "default" && !strings.HasPrefix(name, "site/") {
			continue
		}
		ast.WalkRefs(module, func(r ast.Ref) bool {
			if at := r[0].Location; r.HasPrefix(ref) && at != nil && (where == nil || at.File < where.File || at.File == where.File && at.Row < where.Row) {
				where = at
			}
			return false
		})
	}
	return where
}
