# METADATA
# scope: package
# title: "May this subject use this path at all?"
# schemas:
#   - input: schema.access
package headgate.access

import data.headgate.path
import data.headgate.waiver

# METADATA
# description: "The access decision. One rule builds it, so that nothing can conflict."
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
	"profile": path.profile,
	"waivers": sort(waiver.covering),
	"labels": {},
}

judged := {
	"schema": 1,
	"effect": effect,
	"remedy": remedy,
	"visible": effect == "allow",
	"codes": sort({f.code | some f in denials} | {w.code | some w in endings}),
	"reasons": [reason(f) | some f in denials],
	"warnings": [w | some w in endings],
	"obligations": [],
	"advice": {
		"upgrade_to": "",
		"available_from_day": 0,
		"missing_facts": [],
		"waiver": need,
		"contact": "",
	},
	"valid_until_day": valid_until_day,
	"waived": [w | some w in pardons],
	"profile": path.profile,
	"waivers": sort(waiver.covering),
	"labels": {},
}

findings := path.findings | site

site contains finding if {
	input.schema == 1
	some finding in data.site.access.findings
}

site contains finding if {
	not known
	finding := {
		"code": "INPUT-SCHEMA", "rule": "schema", "remedy": "none", "severity": 4, "doc": "", "params": {},
		"template": "input or index of another version",
	}
}

default known := false

known if {
	input.schema == 1
	data.config.version == 1
}

pardons contains pardon if {
	some finding in findings
	finding.remedy == "waiver"
	some id in waiver.covering
	waiver.holds(id, finding.code)
	pardon := {"code": finding.code, "waiver": id, "expires_day": data.config.waivers[id].expires_day}
}

forgiven contains pardon.code if some pardon in pardons

excused contains finding if {
	some finding in findings
	finding.remedy == "waiver"
	finding.code in forgiven
}

# Whatever is not excused denies, also a finding of a site package that lacks a field.
denials contains finding if {
	some finding in findings
	not finding in excused
}

default effect := "deny"

effect := "allow" if count(denials) == 0

default remedy := ""

remedy := "none" if {
	some finding in denials
	finding.remedy == "none"
} else := "waiver" if {
	some finding in denials
	finding.remedy == "waiver"
} else := "wait" if count(denials) > 0

default need := {"code": "", "path": ""}

need := {"code": "PATH-NOT-ALLOWED", "path": input.resource.path} if remedy == "waiver"

default valid_until_day := null

valid_until_day := min({turn | some pardon in pardons; some turn in waiver.turns(pardon, input.context.day)}) if count(pardons) > 0

endings contains waiver.ending(pardon, input.context.day) if some pardon in pardons

reason(f) := {
	"code": f.code,
	"rule": f.rule,
	"severity": f.severity,
	"template": f.template,
	"doc": f.doc,
	"params": f.params,
}
