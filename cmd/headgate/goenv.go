package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
)

// A goChange is one line of the go command's environment file.
type goChange struct {
	Name   string `json:"name"`
	Before string `json:"before,omitempty"` // empty: it was not set there
	After  string `json:"after,omitempty"`  // empty: it is not set there
}

func (c goChange) String() string {
	return fmt.Sprintf("go env %s: %s, was %s", c.Name, orElse(c.After, "not set"), orElse(c.Before, "not set"))
}

// A goEnvironment is what the go command of this machine has in its file (go env GOENV).
type goEnvironment struct {
	file  map[string]string
	minor int // the N of go1.N
}

// readGoEnvironment asks the go command. Where it keeps no file there is nothing that login could change.
func readGoEnvironment(ctx context.Context) (*goEnvironment, error) {
	out, err := runGo(ctx, "env", "GOENV", "GOVERSION")
	if err != nil {
		return nil, err
	}
	name, version, _ := strings.Cut(out, "\n")
	if name = strings.TrimSpace(name); name == "off" || name == "" {
		return nil, errors.New("the go command keeps no settings here, since GOENV is off; unset GOENV and run this again")
	}
	e := &goEnvironment{file: map[string]string{}}
	e.minor = goMinor(version)
	text, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading the go command's settings: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
			e.file[key] = value
		}
	}
	return e, nil
}

// goMinor is the N of a version such as go1.N.3, go1.Nrc1 or "devel go1.N-abc"; 0 where it has none.
func goMinor(version string) int {
	_, rest, _ := strings.Cut(version, "go1.")
	n := 0
	for _, r := range rest {
		if r < '0' || r > '9' {
			break
		}
		n = 10*n + int(r-'0')
	}
	return n
}

func runGo(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("running go %s: %w %s", strings.Join(args[:2], " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return string(out), nil
}

// plan is what has to be otherwise for the go command to use a gateway. With a checksum database of the gateway's own,
// private modules are checked by it; else they have to be left out of the public one (go help module-private).
func (e *goEnvironment) plan(address, goauth, sumdb string) []goChange {
	unchecked := strings.Trim(e.file["GONOSUMDB"]+","+e.file["GOPRIVATE"], ",")
	sums := e.file["GOSUMDB"]
	if sumdb != "" {
		unchecked, sums = "", sumdb
	} else if sums == "off" {
		sums = ""
	}
	var changes []goChange
	for _, want := range []goChange{
		{Name: "GOPROXY", After: address},
		{Name: "GOAUTH", After: goauth},
		{Name: "GOSUMDB", After: sums},
		{Name: "GONOSUMDB", After: unchecked},
		{Name: "GOPRIVATE"},
		{Name: "GONOPROXY"}, // either leads past the gateway
	} {
		want.Before = e.file[want.Name]
		if want.Before != want.After {
			changes = append(changes, want)
		}
	}
	return changes
}

// overridden are the variables of this shell that win over the file.
func overridden() []string {
	var names []string
	for _, name := range []string{"GOPROXY", "GOAUTH", "GOSUMDB", "GONOSUMDB", "GOPRIVATE", "GONOPROXY"} {
		if os.Getenv(name) != "" {
			names = append(names, name)
		}
	}
	return names
}

func setGo(ctx context.Context, name, value string) error {
	if value == "" {
		_, err := runGo(ctx, "env", "-u", name)
		return err
	}
	_, err := runGo(ctx, "env", "-w", name+"="+value)
	return err
}

// helperEntry is the GOAUTH value that asks this program first and then whatever was asked before; off stands alone.
func helperEntry(program, address, before string) string {
	if strings.ContainsAny(program, " \t") {
		program = "'" + program + "'"
	}
	entry := program + " goauth --url " + address
	if before == "off" {
		return entry
	}
	return entry + ";" + orElse(before, "netrc")
}
