package policy

import (
	"cmp"
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/profiler"
	"github.com/open-policy-agent/opa/v1/rego"
)

// RuleCost is what one rule of Rego takes of answers that are evaluated.
type RuleCost struct {
	File string `json:"file"`
	Line int    `json:"line"` // where it begins
	Rule string `json:"rule"`
	NS   int64  `json:"ns"`   // of one answer, on average over the questions, while it is watched, which takes time of its own
	Runs int    `json:"runs"` // expressions of it that one round of the questions evaluates
}

const (
	rounds       = 5
	shownSlowest = 10
)

// slowest evaluates each question some times while OPA's profiler watches, and gives the rules that took most.
func (b *bundle) slowest(ctx context.Context, g *Generation, questions map[string][]*Input) ([]RuleCost, error) {
	p, asked := profiler.New(), 0
	for _, e := range []*entryPoint{g.access, g.release} {
		for range rounds {
			for _, in := range questions[e.name] {
				input := e.reads.root.project(reflect.ValueOf(in).Elem())
				if _, err := e.query.Eval(ctx, rego.EvalParsedInput(input.Value), rego.EvalQueryTracer(p)); err != nil {
					return nil, fmt.Errorf("watching %s: %w", e.name, err)
				}
				asked++
			}
		}
	}
	costs := map[*ast.Rule]RuleCost{}
	for name, file := range p.ReportByFile().Files {
		for _, expr := range file.Result {
			rule := ruleAt(b.modules[name], expr.Location.Row)
			if rule == nil {
				continue
			}
			c := costs[rule]
			c.NS, c.Runs = c.NS+expr.ExprTimeNs, c.Runs+expr.NumEval
			costs[rule] = c
		}
	}
	var all []RuleCost
	for rule, c := range costs {
		module := strings.TrimPrefix(rule.Module.Package.Path.String(), "data.")
		all = append(all, RuleCost{
			File: rule.Location.File, Line: rule.Location.Row, Rule: module + "." + rule.Head.Ref().String(),
			NS: c.NS / int64(asked), Runs: c.Runs / rounds,
		})
	}
	slices.SortFunc(all, func(a, b RuleCost) int {
		return cmp.Or(cmp.Compare(b.NS, a.NS), cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
	})
	return all[:min(shownSlowest, len(all))], nil
}

// ruleAt is the rule of a module whose text a line is in; nil for what is in none.
func ruleAt(m *ast.Module, row int) *ast.Rule {
	if m == nil {
		return nil
	}
	for _, rule := range slices.Backward(m.Rules) {
		if first := rule.Location.Row; first <= row && row <= first+strings.Count(string(rule.Location.Text), "\n") {
			return rule
		}
	}
	return nil
}
