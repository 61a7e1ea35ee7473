package policy

import (
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
)

// allowedBuiltins are pure functions whose cost is bounded by what goes in. A function that is not named here does not
// compile: nothing that looks at the network, the clock, the environment or chance, nothing that makes much out of
// little (numbers.range, bits.lsh, net.cidr_expand, sprintf with a width, replace), and none that ignores being cancelled for long.
var allowedBuiltins = []string{
	"abs", "ceil", "div", "floor", "minus", "mul", "plus", "rem", "round", // numbers
	"assign", "eq", "equal", "gt", "gte", "lt", "lte", "neq", // comparison
	"internal.member_2", "internal.member_3", // the words "in" and "some … in"
	"internal.test_case",                             // what "every" is rewritten to in tests
	"and", "intersection", "or", "set_diff", "union", // sets
	"array.concat", "array.reverse", "array.slice", // arrays
	"count", "max", "min", "sort", "sum", // aggregates
	"object.get", "object.keys", "object.remove", "object.filter", "object.subset", "object.union", "object.union_n",
	"concat", "contains", "endswith", "format_int", "indexof", "lower", "split", "startswith",
	"strings.any_prefix_match", "strings.any_suffix_match", "strings.count", "substring", "to_number",
	"trim", "trim_left", "trim_prefix", "trim_right", "trim_space", "trim_suffix", "upper",
	"glob.match", "regex.is_valid", "regex.match",
	"semver.compare", "semver.is_valid",
	"is_array", "is_boolean", "is_null", "is_number", "is_object", "is_set", "is_string", "type_name",
}

// capabilities is what policy may use of OPA.
func capabilities() *ast.Capabilities {
	c := ast.CapabilitiesForThisVersion()
	c.Builtins = slices.DeleteFunc(c.Builtins, func(b *ast.Builtin) bool {
		return b.Nondeterministic || !slices.Contains(allowedBuiltins, b.Name)
	})
	// An empty list forbids every host, nil allows every host, and the list does not survive JSON: so capabilities
	// are never read from a file.
	c.AllowNet = []string{}
	return c
}
