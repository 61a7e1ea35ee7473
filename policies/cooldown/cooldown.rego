# METADATA
# scope: package
# title: "Versions that are too young"
# schemas:
#   - input: schema.release
package headgate.cooldown

import data.headgate.rules

findings contains finding if {
	input.resource.facts.age == "ok"
	some rule in rules.selected("cooldown")
	input.resource.age_days < rule.value
	finding := object.union(
		rules.found(rule, {"age": format_int(input.resource.age_days, 10), "days": format_int(rule.value, 10)}),
		{"available_day": input.resource.first_seen_day + rule.value},
	)
}

findings contains finding if {
	input.resource.facts.age in {"missing", "stale"}
	some finding in rules.unknown("cooldown", "age", input.resource.facts.age)
}
