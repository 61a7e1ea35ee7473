package headgate.access_test

import data.headgate.access
import data.headgate.mock_test as mock

denied := {"path": "example.com/abandoned", "prefixes": ["example.com", "example.com/abandoned"]}

unwaived := object.union(mock.config, {"waivers": {"W-1": {"expires_day": 1}}})

test_allow if {
	d := access.decision with input as mock.access with data.config as mock.config
	d.effect == "allow"
	d.remedy == ""
	d.visible
	d.codes == []
	d.profile == "standard"
	d.valid_until_day == null
}

test_deny_has_code_reason_and_need if {
	d := access.decision with input as object.union(mock.access, {"resource": denied}) with data.config as unwaived
	d.effect == "deny"
	d.remedy == "waiver"
	not d.visible
	d.codes == ["PATH-NOT-ALLOWED"]
	d.reasons[0].params == {"prefix": "example.com/abandoned"}
	d.advice.waiver == {"code": "PATH-NOT-ALLOWED", "path": "example.com/abandoned"}
	d.waivers == ["W-1"]
}

test_waived if {
	d := access.decision with input as object.union(mock.access, {"resource": denied}) with data.config as mock.config
	d.effect == "allow"
	d.waived == [{"code": "PATH-NOT-ALLOWED", "waiver": "W-1", "expires_day": 100}]
	d.warnings == []
	d.valid_until_day == 86
}

test_waiver_that_ends_soon_warns if {
	d := access.decision with input as object.union(mock.access, {"resource": denied, "context": {"day": 100}}) with data.config as mock.config
	d.effect == "allow"
	d.codes == ["WAIVER-ENDS"]
	d.warnings[0].params.days == "0"
	d.valid_until_day == 101
}

test_device_is_not_waivable if {
	private := {"path": "corp.example/payments", "prefixes": ["corp.example", "corp.example/payments"], "visibility": "private"}
	d := access.decision with input as object.union(mock.access, {"resource": private}) with data.config as mock.config
	d.remedy == "none"
	d.codes == ["DEVICE-REQUIRED"]
}

test_other_schema if {
	d := access.decision with input as object.union(mock.access, {"schema": 2}) with data.config as mock.config
	d.codes == ["INPUT-SCHEMA"]
	d.effect == "deny"
}

test_empty_input_is_denied if {
	d := access.decision with input as {} with data.config as mock.config
	d.effect == "deny"
}

test_site_adds_reasons if {
	site := [{
		"code": "SITE", "rule": "s1", "remedy": "wait", "severity": 2,
		"doc": "", "params": {}, "template": "not on Fridays",
	}]
	d := access.decision with input as mock.access with data.config as mock.config with data.site.access.findings as site
	d.codes == ["SITE"]
	d.remedy == "wait"
}

test_site_finding_without_fields_denies if {
	d := access.decision with input as mock.access with data.config as mock.config with data.site.access.findings as [{}]
	d.effect == "deny"
}

test_other_index_is_denied if {
	d := access.decision with input as mock.access with data.config as object.union(mock.config, {"version": 2})
	d.codes == ["INPUT-SCHEMA"]
}
