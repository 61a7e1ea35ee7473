// Package policies holds the default bundle: the Rego that answers the two questions, the YAML that teams edit, and the
// tests beside them. It is what a gateway without a configured policy runs on, the library of bundles that hold YAML
// alone, and the template for a policy repository. It has no code: everything is data for package policy.
package policies

import "embed"

// FS is the default bundle.
//
//go:embed bundle.yaml config/*.yaml tests/*.yaml access release rules path cooldown malware vulns licence retraction lookalike integrity toolchain waiver
var FS embed.FS
