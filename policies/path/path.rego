# METADATA
# scope: package
# title: "Teams, their paths, and the devices that private paths ask for"
# schemas:
#   - input: schema.access
package headgate.path

import data.headgate.waiver

# METADATA
# description: "The teams that the subject belongs to."
teams contains team if {
	input.subject.type in {"person", "workload"}
	some group, true in input.subject.groups
	some team in data.config.groups[group]
}

teams contains team if {
	input.subject.type in {"person", "workload"}
	job := concat(":", [input.subject.ci.provider, input.subject.ci.repo_id])
	some team in data.config.jobs[job]
}

teams contains "everyone" if {
	input.subject.type in {"person", "workload"}
	data.config.teams.everyone
}

denied contains prefix if {
	some prefix in input.resource.prefixes
	some team in data.config.deny[prefix]
	team in teams
}

# METADATA
# description: "The teams of the subject that reach the path."
covering contains team if {
	not foreign
	some prefix in input.resource.prefixes
	some team in data.config.allow[prefix]
	team in teams
}

covering contains team if {
	input.resource.visibility != "private"
	some team in teams
	data.config.teams[team].public
}

covering contains team if {
	not foreign
	some id in waiver.covering
	waiver.holds(id, "PATH-NOT-ALLOWED")
	some team in data.config.waivers[id].teams
	team in teams
}

# METADATA
# description: "A fork's job runs the code of whoever sent it, who may have no right in the repository."
foreign if {
	input.resource.visibility == "private"
	input.subject.ci.fork
}

passing contains team if {
	input.resource.visibility != "private"
	some team in covering
}

passing contains team if {
	input.resource.visibility == "private"
	some team in covering
	need := data.config.teams[team].device
	need.proof[input.device.proof]
	input.device.tier >= need.min_tier
}

# METADATA
# description: "The strictest profile of the teams that reach the path."
default profile := ""

profile := data.config.profiles[rank] if {
	count(covering) > 0
	rank := max({data.config.teams[team].rank | some team in covering})
}

findings contains finding("PATH-NOT-ALLOWED", "waiver", "your teams are denied {prefix}", {"prefix": prefix}) if {
	some prefix in denied
}

findings contains finding("PATH-NOT-ALLOWED", "none", "the job of a fork gets public modules only", {}) if foreign

findings contains finding("PATH-NOT-ALLOWED", "waiver", "no team of yours may use this path", {}) if {
	not foreign
	count(covering) == 0
}

findings contains finding("DEVICE-REQUIRED", "none", "this path wants a device that your team registered", {}) if {
	count(covering) > 0
	count(passing) == 0
}

finding(code, remedy, template, params) := {
	"code": code,
	"rule": "teams",
	"remedy": remedy,
	"severity": 3,
	"template": template,
	"doc": "",
	"params": params,
}
