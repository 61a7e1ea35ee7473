package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/mod/module"
	"golang.org/x/tools/txtar"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// phases are the states of the gateway in which each conformance script runs: with an empty store, with a filled one,
// and with an upstream that refuses connections.
var phases = []string{"cold", "warm", "gone"}

// TestConformance runs testdata/script/thrice/*.txtar: the real go command does the same work over https cold, warm and
// with the upstream gone, each time with empty caches of its own. What stands above the line "each" runs once. The body
// below it runs in a fresh copy of the folder m, and lines that begin with [cold], [warm] or [gone] in that phase alone.
func TestConformance(t *testing.T) {
	archives := readArchives(t)
	machine := machineGOPROXY(t)
	testscript.Run(t, testscript.Params{
		Dir:                 thrice(t, "testdata/script/thrice"),
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			if err := newScript(env, archives, machine); err != nil {
				return err
			}
			return prepare(env)
		},
		Cmds: conformanceCommands(),
	})
}

func conformanceCommands() map[string]func(*testscript.TestScript, bool, []string) {
	cmds := scriptCommands()
	cmds["phase"], cmds["query"], cmds["unasked"], cmds["authorized"] = cmdPhase, cmdQuery, cmdUnasked, cmdAuthorized
	return cmds
}

// thrice writes each script with its body written out for each phase, and gives the folder.
func thrice(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.txtar"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s has no scripts: %v", dir, err)
	}
	out := t.TempDir()
	for _, file := range files {
		a, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		once, body, ok := strings.Cut(string(a.Comment), "\neach\n")
		if !ok {
			t.Fatalf("%s has no line \"each\"", file)
		}
		a.Comment = []byte(once + "\n")
		for _, phase := range phases {
			a.Comment = append(a.Comment, inPhase(body, phase)...)
		}
		a.Comment = append(a.Comment, "cd $WORK\nshutdown\nexec headgate audit verify\n"...)
		if err := os.WriteFile(filepath.Join(out, filepath.Base(file)), txtar.Format(a), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// inPhase is the body for one phase. A warm one may not have cost the upstream a file.
func inPhase(body, phase string) string {
	lines := []string{"phase " + phase}
	for line := range strings.Lines(body) {
		line = strings.TrimSuffix(line, "\n")
		condition, rest, ok := strings.Cut(strings.TrimPrefix(line, "["), "] ")
		switch {
		case !ok || !strings.HasPrefix(line, "[") || !slices.Contains(phases, condition):
			lines = append(lines, line)
		case condition == phase:
			lines = append(lines, rest)
		}
	}
	if phase == "warm" {
		lines = append(lines, "unasked")
	}
	return strings.Join(lines, "\n") + "\n"
}

// prepare adds what txtar files cannot hold: answers to queries, and a note of each credential that reaches the upstream.
func prepare(env *testscript.Env) error {
	s := env.Values[scriptKey{}].(*script)
	s.upstream.OnRequest = func(r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if r.Header.Get("Authorization") != "" {
			s.credentials = append(s.credentials, r.URL.Path)
		}
	}
	return errors.Join(addToolchain(s.upstream, "go1.98.0"), addToolchain(s.upstream, "go1.99.1"))
}

// addToolchain offers a Go release whose go command is a script.
func addToolchain(up *mirrortest.Server, release string) error {
	return up.Add(mirrortest.Module{
		Version: module.Version{Path: "golang.org/toolchain", Version: "v0.0.1-" + release + ".linux-amd64"},
		Files: map[string][]byte{
			"bin/go":    []byte("#!/bin/sh\necho \"go version " + release + " linux/amd64: $*\"\n"),
			"bin/gofmt": []byte("#!/bin/sh\n"), "VERSION": []byte(release + "\n"), "lib/time/README": []byte("none\n"), "pkg/tool/linux_amd64/none": []byte("x"),
		},
	})
}

// phase NAME goes to a fresh copy of the folder m with empty caches; in "gone" nobody listens at the upstream's address,
// and Git servers fail.
func cmdPhase(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	if args[0] == "gone" {
		s.upstream.Clear()
		s.listener.CloseClientConnections()
		s.listener.Close()
		if s.git != nil {
			s.git.Before(func(w http.ResponseWriter, _ *http.Request) bool {
				http.Error(w, "gone", http.StatusServiceUnavailable)
				return true
			})
		}
	}
	s.upstream.Forget()
	work := ts.Getenv("WORK")
	ts.Check(ts.Chdir(work))
	run := filepath.Join(work, "run")
	home := filepath.Join(ts.Getenv("HOME"), args[0])
	ts.Check(errors.Join(os.RemoveAll(run), os.MkdirAll(run, 0o700), os.MkdirAll(home, 0o700)))
	ts.Check(os.CopyFS(run, os.DirFS(filepath.Join(work, "m"))))
	for key, folder := range map[string]string{"GOPATH": "go", "GOMODCACHE": "modcache", "GOBIN": "bin"} {
		ts.Setenv(key, filepath.Join(home, folder))
	}
	ts.Check(ts.Chdir(run))
}

// query PATH QUERY VERSION makes the upstream answer a branch or commit.
func cmdQuery(ts *testscript.TestScript, neg bool, args []string) {
	of(ts).upstream.SetQuery(args[0], args[1], args[2])
}

// unasked wants that the upstream was asked for no file, record or tile, all of which are kept for ever.
func cmdUnasked(ts *testscript.TestScript, neg bool, args []string) {
	for _, pattern := range []string{"*.mod", "*.zip", "*lookup*", "*/tile/*"} {
		cmdUpstream(ts, false, []string{"count", pattern, "0"})
	}
}

// authorized N wants that so many requests to the upstream carried a credential.
func cmdAuthorized(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	s.mu.Lock()
	defer s.mu.Unlock()
	if got := fmt.Sprint(len(s.credentials)); got != args[0] {
		ts.Fatalf("%s requests to the upstream carry a credential, want %s: %s", got, args[0], s.credentials)
	}
}
