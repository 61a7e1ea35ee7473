package headgate.licence_test

import data.headgate.licence
import data.headgate.mock_test as mock

rule := mock.rule({"AGPL-3.0-only": true, "unknown": true})

found(asked) := f if f := licence.findings with input as asked with data.config as mock.with_rules("licence", [rule])

agpl := mock.resource({"licences": {"ids": {"AGPL-3.0-only": true, "MIT": true}, "status": "found"}, "facts": {"licences": "ok"}})

test_forbidden if {
	some f in found(agpl)
	f.params.licence == "AGPL-3.0-only"
	count(found(agpl)) == 1
}

test_unknown if {
	some f in found(mock.resource({"licences": {"status": "none"}, "facts": {"licences": "ok"}}))
	f.params.licence == "unknown"
}

test_judged_at_zip_alone if {
	count(found(object.union(agpl, {"action": {"name": "info", "class": "discover"}}))) == 0
	count(found(object.union(mock.resource({"facts": {"licences": "missing"}}), {"action": {"name": "list"}}))) == 0
}

test_missing_waits if {
	some f in found(mock.resource({"facts": {"licences": "missing"}}))
	f.remedy == "wait"
}
