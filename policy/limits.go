package policy

import (
	"encoding/json"
	"fmt"
)

// What a bundle may cost: a compiler cannot be stopped and its memory not be taken back, so what is too large is refused
// before it compiles. Memory is about 20 times the data's JSON.
const (
	maxRegoBytes = 300 << 10
	maxRegoRules = 5000
	maxDataBytes = 10 << 20 // of the index that Rego reads, as JSON
)

// affordable holds the Rego of a built bundle to what may be compiled.
func (b *bundle) affordable() error {
	size, rules := 0, 0
	for name, module := range b.modules {
		size += len(b.files[name])
		rules += len(module.Rules)
		if rules > maxRegoRules {
			return fmt.Errorf("bundle has more than %d rules of Rego, by %s; want tables in config/rules.yaml, or data that one rule looks up", maxRegoRules, name)
		}
	}
	if size > maxRegoBytes {
		return fmt.Errorf("bundle has %d bytes of Rego; want at most %d", size, maxRegoBytes)
	}
	return nil
}

// affordable is asked before the index becomes values of Rego, of which each takes twenty times its bytes. A few lines of
// YAML with many prefixes make many bytes.
func (ix index) affordable() error {
	text, err := json.Marshal(ix)
	if err != nil {
		return fmt.Errorf("building index: %w", err)
	}
	if len(text) > maxDataBytes {
		return fmt.Errorf("config/*.yaml make %d bytes of data; want at most %d", len(text), maxDataBytes)
	}
	return nil
}
