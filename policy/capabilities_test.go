package policy

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
)

// P17: what capabilities say of the network does not survive JSON, so nothing reads them from there.
func TestP17CapabilitiesThroughJSON(t *testing.T) {
	c := capabilities()
	if c.AllowNet == nil || len(c.AllowNet) != 0 {
		t.Fatalf("AllowNet = %#v, want an empty list: nil means every host", c.AllowNet)
	}
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	read, err := ast.LoadCapabilitiesJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	// The list is lost on the way, which is why compile never takes capabilities from elsewhere; and the functions that
	// survive could not dial if they wanted to.
	for _, builtin := range read.Builtins {
		if builtin.Nondeterministic || builtin.Name == "http.send" || builtin.Name == "net.lookup_ip_addr" {
			t.Errorf("%s is allowed", builtin.Name)
		}
	}
	if again := capabilities(); again.AllowNet == nil {
		t.Error("capabilities() after the round trip allows every host")
	}
}

func TestAllowedBuiltinsExist(t *testing.T) {
	have := map[string]bool{}
	for _, b := range capabilities().Builtins {
		have[b.Name] = true
	}
	for _, name := range allowedBuiltins {
		if !have[name] {
			t.Errorf("%s is not a builtin of this OPA", name)
		}
	}
}
