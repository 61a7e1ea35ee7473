# METADATA
# scope: package
# title: "Is this version fit for this profile?"
# schemas:
#   - input: schema.release
package headgate.release

import data.headgate.cooldown
import data.headgate.integrity
import data.headgate.licence
import data.headgate.lookalike
import data.headgate.malware
import data.headgate.retraction
import data.headgate.rules
import data.headgate.toolchain
import data.headgate.vulns
import data.headgate.waiver

# METADATA
# description: "The release decision. One rule builds it, so that nothing can conflict."
# entrypoint: true
decision := clean if {
	count(findings) == 0
} else := judged

# What most questions get. It is written out, since it is answered in a fraction of the time that building it takes.
clean := {
	"schema": 1,
	"effect": "allow",
	"remedy": "",
	"visible": true,
	"codes": [],
	"reasons": [],
	"warnings": [],
	"obligations": [],
	"advice": {
		"upgrade_to": "",
		"available_from_day": 0,
		"missing_facts": [],
		"waiver": {"code": "", "path": ""},
		"contact": "",
	},
	"valid_until_day": null,
	"waived": [],
	"profile": "",
	"waivers": [],
	"labels": {},
}

judged := {
	"schema": 1,
	"effect": effect,
	"remedy": remedy,
	"visible": visible,
	"codes": sort((({f.code | some f in denials} | {f.code | some f in remarks}) | {w.code | some w in endings})),
	"reasons": [reason(f) | some f in denials],
	"warnings": array.concat([reason(f) | some f in remarks], [w | some w in endings]),
	"obligations": [],
	"advice": {
		"upgrade_to": upgrade_to,
		"available_from_day": available_from_day,
		"missing_facts": sort({fact | some f in denials; some fact in f.facts}),
		"waiver": need,
		"contact": contact,
	},
	"valid_until_day": valid_until_day,
	"waived": [p | some p in pardons],
	"profile": "",
	"waivers": [],
	"labels": {},
}

findings := ((((((((cooldown.findings | integrity.findings) | licence.findings) | lookalike.findings) | malware.findings) | retraction.findings) | rules.findings) | toolchain.findings) | vulns.findings) | site

site contains finding if {
	input.schema == 1
	some finding in data.site.release.findings
}

# An input without a schema is of another version, too: with nothing in it nothing would be found against it. No rule
# applies to a profile that the bundle does not have, so such an input is refused as well.
site contains rules.builtin("INPUT-SCHEMA", "none", "input or index of another version", {}) if not known

default known := false

known if {
	input.schema == 1
	data.config.version == 1
	input.context.profile in data.config.profiles
}

# A rule that is not in effect yet warns; any other denies, also when the day is not known.
ripe contains f if {
	some f in findings
	f.effect == "deny"
	not f in unripe
}

unripe contains f if {
	some f in findings
	f.effect == "deny"
	f.effective_day > input.context.day
}

pardons contains pardon if {
	some f in ripe
	f.remedy != "none"
	some id, true in input.context.waivers
	rules.forgives(id, f.code)
	pardon := {"code": f.code, "waiver": id, "expires_day": data.config.waivers[id].expires_day}
}

forgiven contains pardon.code if some pardon in pardons

excused contains f if {
	some f in ripe
	f.remedy != "none"
	f.code in forgiven
}

# What is neither a remark nor excused denies, also a finding of a site package that lacks a field.
denials contains f if {
	some f in findings
	not f in remarks
	not f in excused
}

remarks contains f if {
	some f in findings
	f.effect in {"warn", "hide"}
}

remarks contains f if some f in unripe

default effect := "deny"

effect := "allow" if count(denials) == 0

default visible := false

visible if {
	effect == "allow"
	every f in remarks { f.effect != "hide" }
}

default remedy := ""

remedy := "none" if {
	some f in denials
	f.remedy == "none"
} else := "waiver" if {
	some f in denials
	f.remedy == "waiver"
} else := "wait" if count(denials) > 0

default available_from_day := 0

available_from_day := max({f.available_day | some f in denials}) if remedy == "wait"

default upgrade_to := ""

# What fixes all of the findings is the highest of their fixes, as far as they have one.
upgrade_to := fix if {
	fixes := {f.upgrade_to | some f in denials; f.upgrade_to != ""}
	some fix in fixes
	every other in fixes { semver.compare(fix, other) >= 0 }
}

default contact := ""

contact := max({f.owner | some f in denials}) if count(denials) > 0

default need := {"code": "", "path": ""}

need := {"code": min({f.code | some f in denials}), "path": input.resource.path} if {
	remedy in {"wait", "waiver"}
	every f in denials { not f.code in unwaivable }
}

unwaivable := {"MALWARE", "SUMDB-MISMATCH", "ORIGIN-MOVED"}

turns := ({f.available_day | some f in denials; f.available_day > input.context.day} | {f.effective_day | some f in unripe}) | {turn | some p in pardons; some turn in waiver.turns(p, input.context.day)}

default valid_until_day := null

valid_until_day := min(turns) if count(turns) > 0

endings contains waiver.ending(p, input.context.day) if some p in pardons

reason(f) := {
	"code": f.code,
	"rule": f.rule,
	"severity": f.severity,
	"template": f.template,
	"doc": f.doc,
	"params": f.params,
}
