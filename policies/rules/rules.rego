# METADATA
# scope: package
# title: "Rules of rules.yaml: where they apply, and what they find"
# schemas:
#   - input: schema.release
package headgate.rules

# METADATA
# description: "Rules that say nothing but where they apply deny or warn by that alone."
findings contains found(rule, {}) if some rule in selected("path")

# METADATA
# description: "The rules of a concern that apply to the resource, profile, class and zone."
selected(concern) := array.concat(
	[rule | some rule in data.config.rules[concern].all; applies(rule)],
	[rule |
		some prefix in input.resource.prefixes
		some rule in data.config.rules[concern].prefix[prefix]
		applies(rule)
	],
)

applies(rule) if {
	rule.profiles[input.context.profile]
	rule.classes[input.action.class]
	rule.zones[input.context.zone]
	rule.visibilities[input.resource.visibility]
	rule.types[input.resource.type]
	rule.kinds[input.resource.kind]
	in_range(rule.versions)
}

# METADATA
# description: "Whether the version is in a range, a list of alternatives that each list comparisons. No list is all versions."
in_range(alternatives) if count(alternatives) == 0

in_range(alternatives) if {
	some alternative in alternatives
	every comparison in alternative {
		semver.compare(input.resource.version, comparison.version) in comparison.signs
	}
}

# METADATA
# description: "What a rule found, with the parameters of its text."
found(rule, params) := object.union(rule.finding, {
	"params": object.union({"rule": rule.finding.rule, "profile": input.context.profile}, params),
	"available_day": 0,
	"upgrade_to": "",
	"facts": [],
})

# METADATA
# description: "What the rules of a concern find, given that their fact is missing or stale. A rule that only warns still only warns."
unknown(concern, fact, state) := [finding |
	some rule in selected(concern)
	finding := object.union(found(rule, {"fact": fact, "state": state}), {
		"effect": softened[rule.finding.effect],
		"remedy": "wait",
		"template": "the fact {fact} is {state}, and rule {rule} needs it",
		"facts": [fact],
	})
]

softened := {"deny": "deny", "warn": "warn", "hide": "warn"}

# METADATA
# description: "A finding of the library itself."
builtin(code, remedy, template, params) := {
	"code": code,
	"rule": "library",
	"effect": "deny",
	"remedy": remedy,
	"severity": 4,
	"template": template,
	"doc": "",
	"owner": "",
	"effective_day": 0,
	"params": params,
	"available_day": 0,
	"upgrade_to": "",
	"facts": [],
}

# METADATA
# description: "Whether a waiver forgives a code for this version today. It holds on the day that it expires, and not after."
forgives(id, code) if {
	waiver := data.config.waivers[id]
	waiver.codes[code]
	input.context.day <= waiver.expires_day
	in_range(waiver.versions)
}
