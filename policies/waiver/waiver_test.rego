package headgate.waiver_test

import data.headgate.mock_test as mock
import data.headgate.waiver

test_exact_path if {
	at := object.union(mock.access, {"resource": {"path": "example.com/abandoned", "prefixes": ["example.com", "example.com/abandoned"]}})
	waiver.covering == {"W-1"} with input as at with data.config as mock.config
}

test_exact_path_is_not_a_prefix if {
	at := object.union(mock.access, {"resource": {
		"path": "example.com/abandoned/sub",
		"prefixes": ["example.com", "example.com/abandoned", "example.com/abandoned/sub"],
	}})
	waiver.covering == set() with input as at with data.config as mock.config
}

test_prefix if {
	at := object.union(mock.access, {"resource": {"path": "example.com/young/x", "prefixes": ["example.com", "example.com/young", "example.com/young/x"]}})
	waiver.covering == {"W-2"} with input as at with data.config as mock.config
}

test_of_another_team if {
	at := object.union(mock.access, {"resource": {"path": "example.com/abandoned", "prefixes": ["example.com"]}})
	cfg := object.union(mock.config, {"waived_paths": {"example.com/abandoned": {"W-1": ["tools"]}}})
	waiver.covering == set() with input as at with data.config as cfg
}

test_holds_on_its_last_day if {
	waiver.holds("W-1", "COOLDOWN") with input.context.day as 100 with data.config as mock.config
	not holds_on(101)
}

holds_on(d) if {
	waiver.holds("W-1", "COOLDOWN") with input.context.day as d with data.config as mock.config
}

test_other_code if {
	not other
}

other if {
	waiver.holds("W-1", "LICENCE") with input.context.day as 1 with data.config as mock.config
}
