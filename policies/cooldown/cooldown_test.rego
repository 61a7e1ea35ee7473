package headgate.cooldown_test

import data.headgate.cooldown
import data.headgate.mock_test as mock

found(asked) := f if f := cooldown.findings with input as asked with data.config as mock.with_rules("cooldown", [mock.rule(7)])

test_young if {
	some f in found(mock.resource({"facts": {"age": "ok"}}))
	f.available_day == 55
	f.params.age == "2"
	f.params.days == "7"
}

test_old_enough if count(found(mock.resource({"age_days": 7, "facts": {"age": "ok"}}))) == 0

test_off_does_not_apply if count(found(mock.release)) == 0

test_missing_waits if {
	some state in ["missing", "stale"]
	some f in found(mock.resource({"facts": {"age": state}}))
	f.remedy == "wait"
	f.facts == ["age"]
}
