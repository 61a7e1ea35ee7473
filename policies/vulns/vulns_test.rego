package headgate.vulns_test

import data.headgate.mock_test as mock
import data.headgate.vulns

critical := {"max_severity": 4, "ids": {"GO-1": {"severity": 4, "fixed": "v1.3.0", "kind": ""}}}

unfixed := {"max_severity": 4, "ids": {"GO-1": {"severity": 4, "fixed": "", "kind": ""}}}

found(concern, rule, asked) := f if f := vulns.findings with input as asked with data.config as mock.with_rules(concern, [rule])

test_critical if {
	some f in found("vulns", mock.rule(4), mock.resource({"vulns": critical, "facts": {"vulns": "ok"}}))
	f.params.id == "GO-1"
	f.params.severity == "critical"
	f.upgrade_to == "v1.3.0"
}

test_less_severe if {
	low := {"max_severity": 1, "ids": {"GO-1": {"severity": 1, "fixed": "", "kind": ""}}}
	count(found("vulns", mock.rule(4), mock.resource({"vulns": low, "facts": {"vulns": "ok"}}))) == 0
}

test_only_with_a_fix if {
	rule := object.union(mock.rule(4), {"fixed": true})
	count(found("vulns", rule, mock.resource({"vulns": critical, "facts": {"vulns": "ok"}}))) == 1
	count(found("vulns", rule, mock.resource({"vulns": unfixed, "facts": {"vulns": "ok"}}))) == 0
}

test_text_without_a_fix if {
	some f in found("vulns", mock.rule(4), mock.resource({"vulns": unfixed, "facts": {"vulns": "ok"}}))
	f.params.fixed == "no version yet"
	f.upgrade_to == ""
}

test_missing_waits if {
	some f in found("vulns", mock.rule(4), mock.resource({"facts": {"vulns": "missing"}}))
	f.remedy == "wait"
}

test_missing_warns_where_the_rule_warns if {
	rule := object.union(mock.rule(4), {"finding": {"effect": "warn", "remedy": ""}})
	some f in found("vulns", rule, mock.resource({"facts": {"vulns": "stale"}}))
	f.effect == "warn"
}

test_low_scorecard if {
	some f in found("scorecard", mock.rule(3), mock.resource({"scorecard": 2, "facts": {"scorecard": "ok"}}))
	f.params == {"rule": "r1", "profile": "strict", "score": "2", "below": "3"}
}

test_scorecard_missing if {
	count(found("scorecard", mock.rule(3), mock.resource({"facts": {"scorecard": "missing"}}))) == 1
}
