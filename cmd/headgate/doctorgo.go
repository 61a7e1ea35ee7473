package main

import (
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

func isProxySeparator(r rune) bool { return r == ',' || r == '|' }

// unsetting is the command that takes a setting away where it was made: this shell, or the go command's file.
func unsetting(name string) string {
	if os.Getenv(name) != "" {
		return "unset " + name
	}
	return "go env -u " + name
}

// setting is the command that gives a setting another value, where it was made.
func setting(name, value string) string {
	if os.Getenv(name) != "" {
		return "export " + name + "=" + value
	}
	return "go env -w " + name + "=" + value
}

// settings looks at what leads past the gateway, or switches off what it is for (PROTOCOL C37).
func (x *examination) settings() {
	if why := proxyTrouble(x.env["GOPROXY"], x.Gateway); why != "" {
		x.fail("GOPROXY", fmt.Sprintf("%q: %s", x.env["GOPROXY"], why), setting("GOPROXY", x.Gateway))
	} else {
		x.ok("GOPROXY", "%s alone", x.env["GOPROXY"])
	}
	switch past := x.env["GONOPROXY"]; {
	case past == "" || past == "none":
		x.ok("GONOPROXY", "nothing goes past the gateway")
	case os.Getenv("GONOPROXY") == "" && past == x.env["GOPRIVATE"]:
		x.fail("GOPRIVATE", fmt.Sprintf("%q goes past the gateway, straight to the Git servers", past), unsetting("GOPRIVATE"))
	default:
		x.fail("GONOPROXY", fmt.Sprintf("%q goes past the gateway, straight to the Git servers", past), unsetting("GONOPROXY"))
	}
	if loose := x.env["GOINSECURE"]; loose != "" {
		x.fail("GOINSECURE", fmt.Sprintf("%q may be fetched without TLS where the gateway is passed by", loose), unsetting("GOINSECURE"))
	}
	x.flags()
	x.goauth()
}

// proxyTrouble says what is wrong with a GOPROXY; "" is nothing.
func proxyTrouble(goproxy, gateway string) string {
	if strings.Contains(goproxy, "|") {
		return "after | any error of the gateway, a refusal too, leads on to the next entry"
	}
	found := false
	for entry := range strings.SplitSeq(goproxy, ",") {
		entry = strings.TrimRight(strings.TrimSpace(entry), "/")
		switch {
		case entry == "direct":
			return "direct goes to the Git servers for what the gateway says is not there"
		case entry == "off" || entry == "":
		case entry == gateway || ofAgent(entry):
			found = true
		default:
			return "another proxy stands beside the gateway"
		}
	}
	if !found {
		return "the gateway " + gateway + " is not in it"
	}
	return ""
}

// ofAgent says whether an entry is a port of this machine alone, as headgate agent has one.
func ofAgent(entry string) bool {
	u, err := url.Parse(entry)
	if err != nil || u.Scheme != "http" {
		return false
	}
	at, err := netip.ParseAddrPort(u.Host)
	return err == nil && at.Addr().IsLoopback()
}

func (x *examination) throughAgent() bool {
	return slices.ContainsFunc(strings.FieldsFunc(x.env["GOPROXY"], isProxySeparator), ofAgent)
}

// flags looks for what switches checks off, or builds from files that never came through the gateway.
func (x *examination) flags() {
	for flag := range strings.FieldsSeq(x.env["GOFLAGS"]) {
		name, value, _ := strings.Cut(strings.TrimLeft(flag, "-"), "=")
		switch {
		case name == "insecure" && value != "false":
			x.fail("GOFLAGS", flag+" switches TLS and checksums off", unsetting("GOFLAGS"))
		case name == "mod" && value == "vendor":
			x.warn("GOFLAGS", flag+" builds from the vendor folder, which the gateway does not see", unsetting("GOFLAGS"))
		}
	}
}

// sumdb looks at checksums: which database, and what is left out of it.
func (x *examination) sumdb() {
	want := orElse(x.meta.Sumdb, "sum.golang.org")
	switch name, _, _ := strings.Cut(x.env["GOSUMDB"], "+"); {
	case x.env["GOSUMDB"] == "off":
		x.fail("GOSUMDB", "off: nothing is verified that go.sum does not know", setting("GOSUMDB", want))
	case x.meta.Sumdb != "" && x.env["GOSUMDB"] != x.meta.Sumdb:
		x.warn("GOSUMDB", name+" knows no private modules; the gateway's own database does", setting("GOSUMDB", x.meta.Sumdb))
	default:
		x.ok("GOSUMDB", "%s", name)
	}
	switch left := x.env["GONOSUMDB"]; {
	case left == "" || left == "none":
	case os.Getenv("GONOSUMDB") == "" && left == x.env["GOPRIVATE"]:
		// The finding on GOPRIVATE has it.
	case x.meta.Sumdb != "" && x.env["GOSUMDB"] == x.meta.Sumdb:
		x.fail("GONOSUMDB", fmt.Sprintf("%q is not verified, and the gateway's own database knows it", left), unsetting("GONOSUMDB"))
	default:
		x.ok("GONOSUMDB", "%s is not asked for at the public database", left)
	}
}

// goauth looks at how the go command comes to its credential.
func (x *examination) goauth() {
	value := x.env["GOAUTH"]
	switch {
	case x.throughAgent():
		x.ok("GOAUTH", "not needed: the agent adds the credential")
	case goMinor(x.env["GOVERSION"]) < 24:
		x.ok("GOAUTH", "%s knows .netrc alone", x.env["GOVERSION"])
	case value == "off":
		x.fail("GOAUTH", "off: the go command sends no credential", unsetting("GOAUTH"))
	case x.login != nil && x.login.Netrc == nil && !strings.Contains(value, " goauth"):
		x.fail("GOAUTH", fmt.Sprintf("%q does not ask headgate goauth, which has the sign-in's tokens", value), "headgate login "+x.Gateway)
	default:
		x.commands(value)
	}
}

// commands looks whether the programs of a GOAUTH are there.
func (x *examination) commands(goauth string) {
	for entry := range strings.SplitSeq(goauth, ";") {
		words := strings.Fields(entry)
		if len(words) == 0 {
			x.fail("GOAUTH", fmt.Sprintf("%q has an empty entry, at which the go command stops", goauth), unsetting("GOAUTH"))
			return
		}
		if words[0] == "netrc" || words[0] == "git" || strings.HasPrefix(words[0], "'") || strings.HasPrefix(words[0], `"`) {
			continue
		}
		if _, err := exec.LookPath(words[0]); err != nil {
			x.fail("GOAUTH", fmt.Sprintf("%s cannot be run: %v", words[0], err), "headgate login "+x.Gateway)
			return
		}
	}
	x.ok("GOAUTH", "%s", goauth)
}

// netrc looks at the file that holds passwords.
func (x *examination) netrc() {
	file, err := netrcFile()
	if err != nil {
		return
	}
	info, err := os.Stat(file)
	if err != nil {
		if x.login != nil && x.login.Netrc != nil {
			x.fail("netrc", "login wrote "+file+", and it is gone", "headgate login "+x.Gateway)
		}
		return
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		x.fail("netrc", fmt.Sprintf("%s has mode %04o: others can read the passwords in it", file, info.Mode().Perm()), "chmod 600 "+file)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		x.fail("netrc", err.Error(), "chmod 600 "+file)
		return
	}
	machine := netrcMachine(x.Gateway)
	host, _, ported := strings.Cut(machine, ":")
	switch {
	case netrcPassword(text, machine) != "":
		x.ok("netrc", "%s has an entry of machine %s", file, machine)
	case ported && netrcPassword(text, host) != "":
		x.fail("netrc", fmt.Sprintf("the entry of machine %s is not looked at: the go command looks for %s", host, machine), "in "+file+": machine "+machine)
	}
}

// device looks at the certificate of this machine.
func (x *examination) device() {
	if x.login == nil || x.login.Device == "" {
		return
	}
	d := readDevice(x.login.Device)
	again := "headgate device enrol --url " + x.Gateway + " --code CODE"
	switch left := time.Until(d.Expires); {
	case d.Problem != "":
		x.fail("device", d.Problem, again)
	case left < 7*24*time.Hour:
		x.warn("device", "the certificate ends at "+d.Expires.Format(time.RFC3339), again)
	default:
		x.ok("device", "certificate %s until %s", d.Serial, d.Expires.Format(time.RFC3339))
	}
}
