# METADATA
# scope: package
# title: "Known vulnerabilities and low scores"
# schemas:
#   - input: schema.release
package headgate.vulns

import data.headgate.rules

names := ["none", "low", "medium", "high", "critical"]

findings contains finding if {
	input.resource.facts.vulns == "ok"
	input.resource.vulns.max_severity > 0
	some rule in rules.selected("vulns")
	some id, vuln in input.resource.vulns.ids
	vuln.severity >= rule.value
	fixed_enough(rule, vuln)
	finding := object.union(
		rules.found(rule, {"id": id, "severity": names[vuln.severity], "fixed": named(vuln.fixed)}),
		{"upgrade_to": vuln.fixed},
	)
}

findings contains finding if {
	input.resource.facts.vulns in {"missing", "stale"}
	some finding in rules.unknown("vulns", "vulns", input.resource.facts.vulns)
}

findings contains finding if {
	input.resource.facts.scorecard == "ok"
	some rule in rules.selected("scorecard")
	input.resource.scorecard < rule.value
	finding := rules.found(rule, {"score": format_int(input.resource.scorecard, 10), "below": format_int(rule.value, 10)})
}

findings contains finding if {
	input.resource.facts.scorecard in {"missing", "stale"}
	some finding in rules.unknown("scorecard", "scorecard", input.resource.facts.scorecard)
}

named(fixed) := fixed if fixed != ""

named("") := "no version yet"

fixed_enough(rule, _) if rule.fixed == false

fixed_enough(rule, vuln) if {
	rule.fixed == true
	vuln.fixed != ""
}
