# METADATA
# scope: package
# title: "What is forgiven, to whom, until when"
# schemas:
#   - input: schema.access
package headgate.waiver

import data.headgate.path

# METADATA
# description: "Ids of the waivers that cover the path for a team of the subject, expired or not."
covering contains id if {
	some id, teams in data.config.waived_paths[input.resource.path]
	some team in teams
	team in path.teams
}

covering contains id if {
	some prefix in input.resource.prefixes
	some id, teams in data.config.waived_prefixes[prefix]
	some team in teams
	team in path.teams
}

# METADATA
# description: "The warning that a waiver which forgave something ends within two weeks."
ending(pardon, day) := warning if {
	left := pardon.expires_day - day
	left <= notice
	warning := {
		"code": "WAIVER-ENDS", "rule": pardon.waiver, "severity": 1, "doc": "",
		"template": "waiver {waiver} of {code} ends in {days} days",
		"params": {"waiver": pardon.waiver, "code": pardon.code, "days": format_int(left, 10)},
	}
}

# METADATA
# description: "The days on which what a waiver forgave gets another answer: the warning begins, the waiver ends."
turns(pardon, day) := {turn |
	some turn in {pardon.expires_day - notice, pardon.expires_day + 1}
	turn > day
}

notice := 14

# METADATA
# description: "Whether a waiver forgives a code today. A waiver holds on the day that it expires, and not after."
holds(id, code) if {
	data.config.waivers[id].codes[code]
	input.context.day <= data.config.waivers[id].expires_day
}
