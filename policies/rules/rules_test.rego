package headgate.rules_test

import data.headgate.mock_test as mock
import data.headgate.rules

codes(cfg, asked) := c if {
	c := [f.code | some f in rules.findings] with input as asked with data.config as cfg
}

cfg := mock.with_rules("path", [mock.rule(true)])

test_rule_applies if codes(cfg, mock.release) == ["RULE"]

test_prefix_rule if {
	by_prefix := object.union(mock.config, {"rules": {"path": {"all": [], "prefix": {"example.com": [mock.rule(true)]}}}})
	codes(by_prefix, mock.release) == ["RULE"]
	codes(by_prefix, mock.resource({"prefixes": ["example.org"]})) == []
}

test_scope if {
	codes(cfg, object.union(mock.release, {"context": {"profile": "none"}})) == []
	codes(cfg, object.union(mock.release, {"context": {"zone": "internet"}})) == []
	codes(cfg, object.union(mock.release, {"action": {"class": "metadata"}})) == []
	codes(cfg, mock.resource({"visibility": "unknown"})) == []
	codes(cfg, mock.resource({"type": "go-toolchain"})) == []
	codes(cfg, mock.resource({"kind": "none"})) == []
}

test_versions if {
	ranged := mock.with_rules("path", [object.union(mock.rule(true), {"versions": [
		[{"version": "v1.5.0", "signs": [0, 1]}, {"version": "v1.6.0", "signs": [-1]}],
		[{"version": "v1.7.1", "signs": [0]}],
	]})])
	codes(ranged, mock.resource({"version": "v1.5.0"})) == ["RULE"]
	codes(ranged, mock.resource({"version": "v1.5.9"})) == ["RULE"]
	codes(ranged, mock.resource({"version": "v1.6.0"})) == []
	codes(ranged, mock.resource({"version": "v1.6.0-rc.1"})) == ["RULE"]
	codes(ranged, mock.resource({"version": "v1.7.1"})) == ["RULE"]
	codes(ranged, mock.resource({"version": "v1.7.0"})) == []
}

test_forgives if {
	rules.forgives("W-2", "COOLDOWN") with input as mock.resource({"version": "v2.1.0"}) with data.config as mock.config
	not forgives_old
}

forgives_old if {
	rules.forgives("W-2", "COOLDOWN") with input as mock.release with data.config as mock.config
}
