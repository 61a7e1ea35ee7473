package headgate.retraction_test

import data.headgate.mock_test as mock
import data.headgate.retraction

found(concern, asked) := f if f := retraction.findings with input as asked with data.config as mock.with_rules(concern, [mock.rule(true)])

test_retracted if {
	some f in found("retracted", mock.resource({"retracted": {"state": "yes", "text": "oops"}, "facts": {"retracted": "ok"}}))
	f.params.text == "oops"
}

test_not_retracted if count(found("retracted", mock.resource({"facts": {"retracted": "ok"}}))) == 0

test_deprecated if {
	some f in found("deprecated", mock.resource({"deprecated": {"state": "yes", "text": "use x"}, "facts": {"deprecated": "ok"}}))
	f.params.text == "use x"
}

test_missing_waits if {
	count(found("retracted", mock.resource({"facts": {"retracted": "missing"}}))) == 1
	count(found("deprecated", mock.resource({"facts": {"deprecated": "stale"}}))) == 1
}
