package headgate.path_test

import data.headgate.mock_test as mock
import data.headgate.path

on(name, visibility) := object.union(mock.access, {"resource": {
	"path": name,
	"prefixes": prefixes(name),
	"visibility": visibility,
}})

prefixes(name) := [concat("/", array.slice(parts, 0, n + 1)) |
	parts := split(name, "/")
	some n, _ in parts
]

codes := {f.code | some f in path.findings}

test_group_makes_a_member if {
	path.teams == {"everyone", "payments"} with input as mock.access with data.config as mock.config
}

test_group_that_is_false_does_not if {
	input_false := object.union(mock.access, {"subject": {"groups": {"eng-payments": false}}})
	path.teams == {"everyone"} with input as input_false with data.config as mock.config
}

test_job_makes_a_member if {
	job := object.union(mock.access, {"subject": {"type": "workload", "groups": {}, "ci": {"provider": "github", "repo_id": "482913"}}})
	"payments" in path.teams with input as job with data.config as mock.config
}

test_job_of_another_provider_does_not if {
	job := object.union(mock.access, {"subject": {"type": "workload", "ci": {"provider": "gitlab", "repo_id": "482913"}}})
	not from_job(job)
}

from_job(job) if {
	"payments" in path.teams with input as object.remove(job, ["groups"]) with input.subject.groups as {} with data.config as mock.config
}

test_anonymous_is_in_no_team if {
	anonymous := object.union(mock.access, {"subject": {"type": "anonymous"}})
	path.teams == set() with input as anonymous with data.config as mock.config
	codes == {"PATH-NOT-ALLOWED"} with input as anonymous with data.config as mock.config
}

test_public_path_is_allowed if {
	codes == set() with input as on("example.com/m", "public") with data.config as mock.config
}

test_deny_wins_over_public if {
	codes == {"PATH-NOT-ALLOWED"} with input as on("example.com/abandoned/sub", "public")
		with data.config as object.union(mock.config, {"waivers": {"W-1": {"expires_day": 1}}})
}

test_waiver_forgives_what_no_allow_covers if {
	without := object.union(mock.config, {
		"teams": {"everyone": {"public": false}},
		"deny": {"example.com/abandoned": []},
		"waived_paths": {"example.com/abandoned": {"W-1": ["payments"]}},
	})
	path.covering == {"payments"} with input as on("example.com/abandoned", "public") with data.config as without
}

test_private_path_wants_a_device if {
	codes == {"DEVICE-REQUIRED"} with input as on("corp.example/payments/x", "private") with data.config as mock.config
}

test_private_path_on_a_good_device if {
	good := object.union(on("corp.example/payments/x", "private"), {"device": {"proof": "mtls", "tier": 2}})
	codes == set() with input as good with data.config as mock.config
	path.profile == "strict" with input as good with data.config as mock.config
}

test_device_of_a_low_tier if {
	low := object.union(on("corp.example/payments/x", "private"), {"device": {"proof": "mtls", "tier": 1}})
	codes == {"DEVICE-REQUIRED"} with input as low with data.config as mock.config
}

test_private_path_of_another_team if {
	codes == {"PATH-NOT-ALLOWED"} with input as on("corp.example/tools", "private") with data.config as mock.config
}

test_prefix_is_path_elements if {
	codes == {"PATH-NOT-ALLOWED"} with input as on("corp.example/paymentsx", "private") with data.config as mock.config
}

test_strictest_profile_counts if {
	both := object.union(on("example.com/m", "public"), {"subject": {"groups": {"eng-payments": true}}})
	cfg := object.union(mock.config, {"teams": {"payments": {"public": true}}})
	path.profile == "strict" with input as both with data.config as cfg
	path.profile == "standard" with input as both with data.config as mock.config
}

job_of(fork) := object.union(
	on("corp.example/payments/x", "private"),
	{
		"subject": {"type": "workload", "groups": {}, "ci": {"provider": "github", "repo_id": "482913", "fork": fork}},
		"device": {"proof": "mtls", "tier": 2},
	},
)

test_private_path_for_a_job if {
	codes == set() with input as job_of(false) with data.config as mock.config with input.subject.groups as {}
}

test_private_path_for_the_job_of_a_fork if {
	found := path.findings with input as job_of(true) with data.config as mock.config with input.subject.groups as {}
	{[f.code, f.remedy] | some f in found} == {["PATH-NOT-ALLOWED", "none"]}
}

test_public_path_for_the_job_of_a_fork if {
	public := object.union(job_of(true), {"resource": on("example.com/m", "public").resource})
	codes == set() with input as public with data.config as mock.config with input.subject.groups as {}
}
