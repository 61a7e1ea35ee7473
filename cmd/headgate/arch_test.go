package main

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const root = "github.com/headgate/headgate/"

// imports is the whole import table of the shipped code: a package imports its own children; gateway also imports
// identity, policy and audit; cmd wires. A new edge is a change here and in README.md.
var imports = map[string][]string{
	"audit":                          {"audit/schema", "audit/sinks"},
	"audit/schema":                   {},
	"audit/sinks":                    {},
	"audit/sinks/sinkstest":          {},
	"identity":                       {},
	"identity/identitytest":          {},
	"deploy":                         {},
	"policies":                       {},
	"policy":                         {"policy/git"},
	"policy/git":                     {},
	"policy/git/gittest":             {},
	"gateway":                        {"audit", "gateway/feeds", "gateway/mirror", "identity", "policy"},
	"gateway/feeds":                  {},
	"gateway/mirror":                 {"gateway/mirror/licence", "gateway/mirror/store", "gateway/mirror/sumdb", "gateway/mirror/upstream", "gateway/mirror/vcs"},
	"gateway/mirror/licence":         {},
	"gateway/mirror/mirrortest":      {},
	"gateway/mirror/store":           {},
	"gateway/mirror/store/storetest": {"gateway/mirror/store"},
	"gateway/mirror/sumdb":           {},
	"gateway/mirror/upstream":        {},
	"gateway/mirror/vcs":             {},
	"gateway/mirror/vcs/vcstest":     {},
	"cmd/headgate":                   {"audit", "audit/schema", "audit/sinks", "gateway", "gateway/feeds", "gateway/mirror", "gateway/mirror/store", "identity", "policies", "policy"},
	"cmd/headgate/statetest":         {},
	"cmd/headgate-demo":              {"gateway/mirror/mirrortest", "identity/identitytest"},
}

// soleUsers names the folders that alone may import a library.
var soleUsers = map[string][]string{
	"github.com/open-policy-agent/opa":    {"policy", "policies"},
	"github.com/golang-jwt/jwt":           {"identity"},
	"github.com/coreos/go-oidc":           {"identity"},
	"golang.org/x/oauth2":                 {"identity", "identity/identitytest", "cmd/headgate-demo"},
	"github.com/zitadel/oidc":             {"gateway/mirror/mirrortest", "identity/identitytest"},
	"github.com/pressly/goose":            {"identity", "gateway/mirror"},
	"github.com/spf13/cobra":              {"cmd/headgate"},
	"github.com/google/licenseclassifier": {"gateway/mirror/licence"},
	"github.com/failsafe-go/failsafe-go":  {"gateway/mirror/upstream"},
	"github.com/pandatix/go-cvss":         {"gateway/feeds"},
	"gocloud.dev":                         {"gateway/mirror/store"},
	"cloud.google.com/go/storage":         {"gateway/mirror/store"},
	"github.com/Azure/azure-sdk-for-go":   {"gateway/mirror/store"},
	"github.com/aws/aws-sdk-go-v2":        {"gateway/mirror/store"},
	"modernc.org/sqlite":                  {"cmd/headgate", "cmd/headgate/statetest"},
	"github.com/jackc/pgx":                {"cmd/headgate", "cmd/headgate/statetest"},
}

func TestImportTable(t *testing.T) {
	got := map[string][]string{}
	for _, p := range listPackages(t) {
		name := strings.TrimPrefix(p.ImportPath, root)
		got[name] = []string{}
		for _, imported := range p.Imports {
			if inner, ok := strings.CutPrefix(imported, root); ok {
				got[name] = append(got[name], inner)
			}
			for library, users := range soleUsers {
				if (imported == library || strings.HasPrefix(imported, library+"/")) && !slices.Contains(users, name) {
					t.Errorf("%s imports %s; only %s may", name, imported, strings.Join(users, ", "))
				}
			}
		}
		slices.Sort(got[name])
	}
	if diff := cmp.Diff(imports, got); diff != "" {
		t.Errorf("imports differ from the table (-table +code):\n%s", diff)
	}
}

type listed struct {
	ImportPath string
	Imports    []string
}

func listPackages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", root+"...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []listed
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatalf("reading go list: %v", err)
		}
		all = append(all, p)
	}
}
