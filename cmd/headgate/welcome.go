package main

import (
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/policy"
)

// welcome says where everything is, and what a client needs, as lines to copy.
func (a *app) welcome(w io.Writer) {
	s, c := a.server, a.config
	revision := "none: every request is refused until a bundle loads"
	if generation, err := a.policy.Current(); err == nil {
		revision = generation.Revision()
	}
	file := c.file
	if file == "" {
		file = "defaults"
	}
	fmt.Fprintf(w, "headgate %s is ready\n", thisBuild().Version)
	for _, line := range [][2]string{
		{"clients use", s.URL()},
		{"CA file", orElse(s.CAFile(), "the operator's own: "+c.Gateway.TLS.Cert)},
		{"operations", "http://" + s.Operations() + "/readyz /metrics"},
		{"state", c.State},
		{"configuration", file},
		{"upstream", orElse(strings.Join(a.mirror.UpstreamHosts(), ", "), "none: an island")},
		{"policy", orElse(c.Policy.Source, "embedded") + ", revision " + revision},
		{"facts off", orElse(strings.Join(c.factsOff(), ", "), "none")},
	} {
		fmt.Fprintf(w, "  %-14s %s\n", line[0], line[1])
	}
	fmt.Fprint(w, "\nto use it from this machine:\n")
	for _, line := range a.clientLines() {
		fmt.Fprintf(w, "  %s\n", line)
	}
}

// clientLines are the commands that make the go command use this gateway.
func (a *app) clientLines() []string {
	flag := ""
	if a.config.file != "" {
		flag = " --config " + a.config.file
	}
	lines := []string{
		"TOKEN=$(headgate" + flag + " token create --for \"$USER\" --modules '*' --quiet)",
		"echo \"machine " + netrcMachine(a.server.URL()) + " login headgate password $TOKEN\" >> ~/.netrc && chmod 600 ~/.netrc",
		"export GOPROXY=" + a.server.URL(),
	}
	if ca := a.server.CAFile(); ca != "" {
		lines = append(lines, "export SSL_CERT_FILE="+ca)
	}
	if key, err := a.mirror.OwnSumdb(); err == nil && key != "" {
		lines = append(lines, "export GOSUMDB="+key)
	}
	return append(lines, "go mod download")
}

// netrcMachine is the host as the go command looks it up in .netrc: with its port unless that is 443.
func netrcMachine(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return address
	}
	if u.Port() == "443" {
		return u.Hostname()
	}
	if u.Port() == "" {
		return u.Host
	}
	return net.JoinHostPort(u.Hostname(), u.Port())
}

func orElse(text, other string) string {
	if text == "" {
		return other
	}
	return text
}

// policyChanged records an activation or a rejection of a policy bundle.
func (a *app) policyChanged(e policy.Event) {
	rec := audit.Begin("")
	rec.Kind, rec.Action, rec.Severity = audit.KindAdmin, "policy.activate", 1
	rec.Subject = audit.Subject{ID: "headgate", Kind: "workload"}
	rec.PolicyRev, rec.BundleSHA256 = e.Revision, e.Digest
	rec.Change = audit.Change{Object: "policy " + e.Source, OldSHA256: e.Previous, NewSHA256: e.Digest}
	if e.Commit != "" {
		rec.Change.Note = e.Ref + " at " + e.Commit
	}
	if e.Signer != "" {
		rec.Change.Note += ", signed by " + e.Signer
	}
	if e.Rollback != "" {
		rec.Change.Note += ", chosen by policy.rollback_to until " + e.Rollback
	}
	if !e.Active {
		rec.Action, rec.Severity = "policy.reject", 3
		rec.Change.Note = strings.TrimPrefix(rec.Change.Note+"; ", "; ") + e.State + ": " + e.Reason
	}
	a.audit.Note(rec)
}
