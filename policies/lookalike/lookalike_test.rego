package headgate.lookalike_test

import data.headgate.lookalike
import data.headgate.mock_test as mock

found(asked) := f if {
	f := lookalike.findings with input as asked
		with data.config as mock.with_rules("lookalike", [mock.rule({"edit1": true})])
}

test_lookalike if {
	some f in found(mock.resource({"lookalike": {"of": "example.com/n", "kind": "edit1"}, "facts": {"lookalike": "ok"}}))
	f.params.of == "example.com/n"
}

test_other_kind if count(found(mock.resource({"lookalike": {"kind": "edit2"}, "facts": {"lookalike": "ok"}}))) == 0

test_missing_waits if count(found(mock.resource({"facts": {"lookalike": "missing"}}))) == 1
