package deploy_test

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// ruleFiles are the alarms, each with a test beside it.
var ruleFiles = []string{"audit", "policy"}

// TestA54Alerts has promtool, of Debian's package prometheus, judge the rules and run their tests.
func TestA54Alerts(t *testing.T) {
	var all [][]string
	for _, name := range ruleFiles {
		all = append(all, []string{"check", "rules", name + ".rules.yaml"}, []string{"test", "rules", name + ".rules.test.yaml"})
	}
	for _, args := range all {
		cmd := exec.CommandContext(t.Context(), "promtool", args...)
		cmd.Dir = "prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// TestAlertsAreTested wants each alarm to fire in one test, and to be silent in the healthy one and without its series.
func TestAlertsAreTested(t *testing.T) {
	for _, name := range ruleFiles {
		t.Run(name, func(t *testing.T) { alertsAreTested(t, name) })
	}
}

func alertsAreTested(t *testing.T, name string) {
	t.Helper()
	var rules struct {
		Groups []struct {
			Rules []struct{ Alert string }
		}
	}
	var tests struct {
		Tests []struct {
			Rules []struct {
				Alert  string `yaml:"alertname"`
				Alerts []any  `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	read(t, "prometheus/"+name+".rules.yaml", &rules)
	read(t, "prometheus/"+name+".rules.test.yaml", &tests)
	fires, silent := map[string]bool{}, map[string]int{}
	for i, test := range tests.Tests {
		for _, r := range test.Rules {
			fires[r.Alert] = fires[r.Alert] || len(r.Alerts) > 0
			if i < 2 && len(r.Alerts) == 0 {
				silent[r.Alert]++
			}
		}
	}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if !fires[r.Alert] || silent[r.Alert] != 2 {
				t.Errorf("%s: tested to fire %v, to be silent %d times of 2", r.Alert, fires[r.Alert], silent[r.Alert])
			}
		}
	}
}

// TestAlertsAreOnMetrics wants each metric of the rules to be one that the code has.
func TestAlertsAreOnMetrics(t *testing.T) {
	code := ""
	for _, name := range []string{"../audit/metrics.go", "../audit/sinks/metrics.go", "../policy/metrics.go"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		code += string(b)
	}
	for _, name := range ruleFiles {
		b, err := os.ReadFile("prometheus/" + name + ".rules.yaml")
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`headgate_(audit_)?(\w+)`).FindAllStringSubmatch(string(b), -1) {
			if !strings.Contains(code, `"`+m[2]+`"`) && !strings.Contains(code, `"`+m[0]+`"`) {
				t.Errorf("the rules ask for %s, which the code does not have", m[0])
			}
		}
	}
}

func read(t *testing.T, name string, to any) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err == nil {
		err = yaml.Unmarshal(b, to)
	}
	if err != nil {
		t.Fatalf("reading %s: %v", name, err)
	}
}
