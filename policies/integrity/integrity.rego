# METADATA
# scope: package
# title: "Bytes that are not what they were, and holds by an operator"
# schemas:
#   - input: schema.release
package headgate.integrity

import data.headgate.rules

findings contains rules.builtin("SUMDB-MISMATCH", "none", "the checksum database has another hash for this version", {}) if {
	input.resource.sumdb == "mismatch"
}

findings contains rules.builtin("ORIGIN-MOVED", "none", "the tag of this version was moved to another commit", {}) if {
	input.resource.origin_drift == "moved"
}

findings contains rules.builtin("HELD", "none", "an operator holds this version back", {}) if {
	input.resource.quarantine.state == "held"
}
