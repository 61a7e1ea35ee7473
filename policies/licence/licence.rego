# METADATA
# scope: package
# title: "Licences, which are in the zip and judged there alone"
# schemas:
#   - input: schema.release
package headgate.licence

import data.headgate.rules

findings contains finding if {
	input.action.name == "zip"
	input.resource.facts.licences == "ok"
	some rule in rules.selected("licence")
	some id, true in input.resource.licences.ids
	rule.value[id]
	finding := rules.found(rule, {"licence": id})
}

findings contains finding if {
	input.action.name == "zip"
	input.resource.facts.licences == "ok"
	input.resource.licences.status != "found"
	some rule in rules.selected("licence")
	rule.value.unknown
	finding := rules.found(rule, {"licence": "unknown"})
}

findings contains finding if {
	input.action.name == "zip"
	input.resource.facts.licences in {"missing", "stale"}
	some finding in rules.unknown("licence", "licences", input.resource.facts.licences)
}
