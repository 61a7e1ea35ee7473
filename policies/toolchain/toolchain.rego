# METADATA
# scope: package
# title: "Go toolchains have a rule of their own"
# schemas:
#   - input: schema.release
package headgate.toolchain

import data.headgate.rules

findings contains rules.builtin("TOOLCHAIN-NOT-ALLOWED", "none", "no rule allows this Go toolchain", {}) if {
	input.resource.type == "go-toolchain"
	count(allowing) == 0
}

allowing contains i if {
	some i, toolchain in data.config.toolchains
	toolchain.profiles[input.context.profile]
	rules.in_range(toolchain.versions)
}
