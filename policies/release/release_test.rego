package headgate.release_test

import data.headgate.mock_test as mock
import data.headgate.release

young := mock.with_rules("cooldown", [cooldown])

cooldown := object.union(mock.rule(7), {"finding": {"code": "COOLDOWN", "remedy": "wait"}})

too_young := mock.resource({"facts": {"age": "ok"}})

decide(cfg, asked) := d if d := release.decision with input as asked with data.config as cfg

test_allow if {
	d := decide(mock.config, mock.release)
	d.effect == "allow"
	d.remedy == ""
	d.visible
	d.codes == []
	d.valid_until_day == null
}

test_wait_names_the_day if {
	d := decide(young, too_young)
	d.effect == "deny"
	d.remedy == "wait"
	not d.visible
	d.codes == ["COOLDOWN"]
	d.advice.available_from_day == 55
	d.advice.waiver == {"code": "COOLDOWN", "path": "example.com/m"}
	d.advice.contact == "appsec"
	d.valid_until_day == 55
}

test_waiver_cuts_the_wait_short if {
	d := decide(young, object.union(too_young, {"context": {"waivers": {"W-1": true}}}))
	d.effect == "allow"
	d.visible
	d.waived == [{"code": "COOLDOWN", "waiver": "W-1", "expires_day": 100}]
	d.warnings == []
	d.valid_until_day == 86
}

test_waiver_that_ends_soon_warns if {
	d := decide(young, object.union(too_young, {"context": {"day": 86, "waivers": {"W-1": true}}}))
	d.effect == "allow"
	d.visible
	d.codes == ["WAIVER-ENDS"]
	d.warnings[0].params == {"waiver": "W-1", "code": "COOLDOWN", "days": "14"}
	d.valid_until_day == 101
}

test_waiver_of_another_version if {
	d := decide(young, object.union(too_young, {"context": {"waivers": {"W-2": true}}}))
	d.effect == "deny"
}

test_waiver_on_its_last_day_and_after if {
	decide(young, object.union(too_young, {"context": {"day": 100, "waivers": {"W-1": true}}})).effect == "allow"
	decide(young, object.union(too_young, {"context": {"day": 101, "waivers": {"W-1": true}}})).effect == "deny"
}

test_remedy_none_is_not_waivable if {
	none := mock.with_rules("path", [object.union(mock.rule(true), {"finding": {"code": "COOLDOWN", "remedy": "none"}})])
	d := decide(none, object.union(mock.release, {"context": {"waivers": {"W-1": true}}}))
	d.effect == "deny"
	d.remedy == "none"
	d.advice.waiver == {"code": "", "path": ""}
}

test_hardest_remedy_wins if {
	both := object.union(young, {"rules": {"path": {"all": [mock.rule(true)], "prefix": {}}}})
	d := decide(both, too_young)
	d.remedy == "waiver"
	d.codes == ["COOLDOWN", "RULE"]
	d.advice.available_from_day == 0
}

test_rule_that_is_not_in_effect_yet_warns if {
	later := mock.with_rules("path", [object.union(mock.rule(true), {"finding": {"effective_day": 51}})])
	d := decide(later, mock.release)
	d.effect == "allow"
	d.visible
	d.warnings[0].code == "RULE"
	d.valid_until_day == 51
	decide(later, object.union(mock.release, {"context": {"day": 51}})).effect == "deny"
}

test_hidden_is_allowed_and_not_visible if {
	hide := mock.with_rules("path", [object.union(mock.rule(true), {"finding": {"effect": "hide", "remedy": ""}})])
	d := decide(hide, mock.release)
	d.effect == "allow"
	not d.visible
	d.warnings[0].code == "RULE"
}

test_other_schema if decide(mock.config, object.union(mock.release, {"schema": 2})).codes == ["INPUT-SCHEMA"]

test_unknown_profile_is_denied if {
	decide(mock.config, object.union(mock.release, {"context": {"profile": "lax"}})).effect == "deny"
}

test_empty_input_is_denied if decide(mock.config, {}).effect == "deny"

test_site_adds_reasons if {
	d := release.decision with input as mock.release with data.config as mock.config with data.site.release.findings as [{
		"code": "SITE", "rule": "s1", "effect": "deny", "remedy": "waiver", "severity": 2, "template": "no", "doc": "",
		"owner": "", "effective_day": 0, "params": {}, "available_day": 0, "upgrade_to": "", "facts": [],
	}]
	d.codes == ["SITE"]
}

test_site_finding_without_fields_denies if {
	d := release.decision with input as mock.release with data.config as mock.config with data.site.release.findings as [{}]
	d.effect == "deny"
}

test_other_index_is_denied if {
	d := release.decision with input as mock.release with data.config as object.union(mock.config, {"version": 2})
	d.codes == ["INPUT-SCHEMA"]
}

test_upgrade_to_what_fixes_all if {
	two := {"max_severity": 4, "ids": {
		"GO-1": {"severity": 4, "fixed": "v1.9.0", "kind": ""}, "GO-2": {"severity": 4, "fixed": "v1.10.0", "kind": ""},
		"GO-3": {"severity": 4, "fixed": "", "kind": ""},
	}}
	d := decide(mock.with_rules("vulns", [mock.rule(4)]), mock.resource({"vulns": two, "facts": {"vulns": "ok"}}))
	d.advice.upgrade_to == "v1.10.0"
	count(d.reasons) == 3
}

test_no_waiver_for_malware if {
	both := mock.with_rules("path", [mock.rule(true)])
	d := decide(both, mock.resource({"facts": {"malware": "missing"}}))
	d.codes == ["MALWARE", "RULE"]
	d.advice.waiver == {"code": "", "path": ""}
}
