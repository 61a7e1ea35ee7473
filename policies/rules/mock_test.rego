# METADATA
# title: "Index and inputs for the tests of all packages"
package headgate.mock_test

every_profile := {"open": true, "standard": true, "strict": true}

config := {
	"version": 1,
	"profiles": ["open", "standard", "strict"],
	"teams": {
		"everyone": {"profile": "standard", "rank": 1, "public": true, "device": {"proof": {"none": true}, "min_tier": 0}},
		"payments": {
			"profile": "strict", "rank": 2, "public": false,
			"device": {"proof": {"token": true, "mtls": true}, "min_tier": 2},
		},
		"tools": {"profile": "open", "rank": 0, "public": false, "device": {"proof": {"none": true}, "min_tier": 0}},
	},
	"groups": {"eng-payments": ["payments"], "eng-tools": ["tools"]},
	"jobs": {"github:482913": ["payments"]},
	"allow": {"corp.example/payments": ["payments"], "corp.example/tools": ["tools"]},
	"deny": {"example.com/abandoned": ["payments"]},
	"toolchains": [{"profiles": every_profile, "versions": [[{"version": "v0.0.1-go1.21.0", "signs": [0, 1]}]]}],
	"rules": {},
	"waivers": {
		"W-1": {"codes": {"COOLDOWN": true, "PATH-NOT-ALLOWED": true}, "teams": ["payments"], "expires_day": 100, "versions": []},
		"W-2": {
			"codes": {"COOLDOWN": true}, "teams": ["payments"], "expires_day": 100,
			"versions": [[{"version": "v2.0.0", "signs": [0, 1]}]],
		},
	},
	"waived_paths": {"example.com/abandoned": {"W-1": ["payments"]}},
	"waived_prefixes": {"example.com/young": {"W-2": ["payments"]}},
}

# METADATA
# description: "A rule of the index that applies everywhere and denies."
rule(value) := {
	"profiles": every_profile,
	"classes": {"discover": true, "content": true},
	"zones": {"corp": true, "ci": true},
	"visibilities": {"public": true, "private": true},
	"kinds": {"release": true, "pseudo": true},
	"types": {"go-module": true},
	"versions": [],
	"value": value,
	"fixed": false,
	"finding": {
		"code": "RULE", "rule": "r1", "effect": "deny", "remedy": "waiver", "severity": 3,
		"template": "rule {rule}", "doc": "", "owner": "appsec", "effective_day": 0,
	},
}

# METADATA
# description: "The index with rules of one concern, none of them below a prefix."
with_rules(concern, rules) := object.union(config, {"rules": {concern: {"all": rules, "prefix": {}}}})

access := {
	"schema": 1,
	"subject": {"type": "person", "groups": {"eng-payments": true}, "ci": null},
	"device": {"proof": "none", "tier": 0},
	"action": {"name": "zip", "class": "content"},
	"resource": {"path": "example.com/m", "prefixes": ["example.com", "example.com/m"], "visibility": "public"},
	"context": {"day": 50, "zone": "corp"},
}

release := {
	"schema": 1,
	"action": {"name": "zip", "class": "content"},
	"resource": {
		"type": "go-module", "path": "example.com/m", "prefixes": ["example.com", "example.com/m"], "visibility": "public",
		"version": "v1.2.3", "kind": "release", "first_seen_day": 48, "age_days": 2,
		"retracted": {"state": "no", "text": ""}, "deprecated": {"state": "no", "text": ""},
		"sumdb": "verified", "origin_drift": "same", "malware": "none", "scorecard": -1,
		"vulns": {"max_severity": 0, "ids": {}}, "licences": {"ids": {}, "status": "unknown"},
		"lookalike": {"of": "", "kind": "none"}, "quarantine": {"state": "none"},
		"facts": {
			"age": "off", "vulns": "off", "malware": "off", "licences": "off", "lookalike": "off",
			"scorecard": "off", "retracted": "off", "deprecated": "off",
		},
	},
	"context": {"day": 50, "zone": "corp", "profile": "strict", "waivers": {}},
}

# METADATA
# description: "The release input with other facts of the resource."
resource(facts) := object.union(release, {"resource": facts})
