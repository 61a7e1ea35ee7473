# METADATA
# scope: package
# title: "Names that can be mistaken for popular ones"
# schemas:
#   - input: schema.release
package headgate.lookalike

import data.headgate.rules

findings contains finding if {
	input.resource.facts.lookalike == "ok"
	input.resource.lookalike.kind != "none"
	some rule in rules.selected("lookalike")
	rule.value[input.resource.lookalike.kind]
	finding := rules.found(rule, {"of": input.resource.lookalike.of})
}

findings contains finding if {
	input.resource.facts.lookalike in {"missing", "stale"}
	some finding in rules.unknown("lookalike", "lookalike", input.resource.facts.lookalike)
}
