package headgate.toolchain_test

import data.headgate.mock_test as mock
import data.headgate.toolchain

codes(cfg, v) := c if {
	c := {f.code | some f in toolchain.findings} with input as mock.resource({"type": "go-toolchain", "version": v})
		with data.config as cfg
}

test_allowed if codes(mock.config, "v0.0.1-go1.24.2.linux-amd64") == set()

test_too_old if codes(mock.config, "v0.0.1-go1.20.1.linux-amd64") == {"TOOLCHAIN-NOT-ALLOWED"}

test_no_rule_for_it if codes(object.union(mock.config, {"toolchains": []}), "v0.0.1-go1.24.2.linux-amd64") == {"TOOLCHAIN-NOT-ALLOWED"}

test_modules_are_not_toolchains if {
	count(toolchain.findings) == 0 with input as mock.release with data.config as mock.config
}
