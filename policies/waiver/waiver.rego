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
# description: "Whether a waiver forgives a code today. A waiver holds on the day that it expires, and not after."
holds(id, code) if {
	data.config.waivers[id].codes[code]
	input.context.day <= data.config.waivers[id].expires_day
}
