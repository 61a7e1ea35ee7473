# METADATA
# scope: package
# title: "Versions that their authors took back"
# schemas:
#   - input: schema.release
package headgate.retraction

import data.headgate.rules

findings contains finding if {
	input.resource.facts.retracted == "ok"
	input.resource.retracted.state == "yes"
	some rule in rules.selected("retracted")
	finding := rules.found(rule, {"text": input.resource.retracted.text})
}

findings contains finding if {
	input.resource.facts.retracted in {"missing", "stale"}
	some finding in rules.unknown("retracted", "retracted", input.resource.facts.retracted)
}

findings contains finding if {
	input.resource.facts.deprecated == "ok"
	input.resource.deprecated.state == "yes"
	some rule in rules.selected("deprecated")
	finding := rules.found(rule, {"text": input.resource.deprecated.text})
}

findings contains finding if {
	input.resource.facts.deprecated in {"missing", "stale"}
	some finding in rules.unknown("deprecated", "deprecated", input.resource.facts.deprecated)
}
