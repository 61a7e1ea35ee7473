package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/module"
)

// A need is a version that a build needs, and the line that says so.
type need struct {
	module.Version
	modOnly bool // its go.mod alone
	file    string
	line    int
	problem string // why it could not be found out what is needed; then there is no version
}

// readNeeds reads files, and asks the go command about packages. A version that stands twice is asked about once.
func readNeeds(ctx context.Context, args []string) ([]need, error) {
	var all []need
	var packages []string
	for _, arg := range args {
		if !isNeedsFile(arg) {
			packages = append(packages, arg)
			continue
		}
		text, err := os.ReadFile(arg)
		if err != nil {
			return nil, fmt.Errorf("reading what the build needs: %w", err)
		}
		list, err := wantedIn(filepath.Base(arg), text)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", arg, err)
		}
		for _, w := range list {
			all = append(all, need{Version: module.Version{Path: w.Path, Version: w.Version}, modOnly: w.ModOnly, file: arg, line: w.line})
		}
	}
	if len(packages) > 0 {
		list, err := neededBy(ctx, packages)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	return eachOnce(all), nil
}

// isNeedsFile tells a file from a pattern of packages, whose go.mod the go command finds.
func isNeedsFile(arg string) bool {
	switch filepath.Ext(arg) {
	case ".mod", ".sum":
		return true
	}
	return isFile(arg)
}

// eachOnce keeps the first place of each version; a zip that is needed anywhere is needed.
func eachOnce(needs []need) []need {
	place := map[module.Version]int{}
	var once []need
	for _, n := range needs {
		i, double := place[n.Version]
		if double && n.problem == "" {
			once[i].modOnly = once[i].modOnly && n.modOnly
			continue
		}
		place[n.Version] = len(once)
		once = append(once, n)
	}
	return once
}

// A listedPackage is what is read of go list -json.
type listedPackage struct {
	ImportPath string
	Module     *listedModule
	Error      *struct{ Err string }
}

type listedModule struct {
	Path, Version string
	Main          bool
	Replace       *listedModule
}

// neededBy asks the go command which modules packages and their tests need. It may download modules; one that it is
// refused is found by its line in go.mod.
func neededBy(ctx context.Context, patterns []string) ([]need, error) {
	args := append([]string{"list", "-deps", "-test", "-e", "-mod=readonly", "-json=ImportPath,Module,Error", "--"}, patterns...)
	out, err := runGo(ctx, args...)
	if err != nil {
		return nil, err
	}
	mod, err := mainModule(ctx)
	if err != nil {
		return nil, err
	}
	var all []need
	for d := json.NewDecoder(strings.NewReader(out)); ; {
		var p listedPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("reading go list: %w", err)
		}
		if n, needed := mod.need(p); needed {
			all = append(all, n)
		}
	}
}

// A mainMod is the go.mod of the main module, with the line of each requirement.
type mainMod struct {
	file     string
	required []placed
}

func mainModule(ctx context.Context) (mainMod, error) {
	out, err := runGo(ctx, "env", "GOMOD")
	if err != nil {
		return mainMod{}, err
	}
	name := strings.TrimSpace(out)
	text, err := os.ReadFile(name)
	if err != nil {
		return mainMod{}, fmt.Errorf("reading the main module's go.mod: %w", err)
	}
	m := mainMod{file: name}
	if here, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(here, name); err == nil && filepath.IsLocal(rel) {
			m.file = rel
		}
	}
	m.required, err = wantedInMod(name, text)
	if err != nil {
		return mainMod{}, fmt.Errorf("reading %s: %w", name, err)
	}
	return m, nil
}

// need is the version that a package comes from. A package that could not be loaded comes from the requirement with the
// longest path that it is below; one that has none is a problem.
func (m mainMod) need(p listedPackage) (need, bool) {
	n := need{file: m.file, line: 1}
	if found := p.Module; found != nil {
		if found.Replace != nil {
			found = found.Replace
		}
		if found.Main || found.Version == "" {
			return n, false
		}
		n.Version = module.Version{Path: found.Path, Version: found.Version}
		for _, r := range m.required {
			if r.Path == n.Path {
				n.line = r.line
			}
		}
		return n, true
	}
	if p.Error == nil {
		return n, false
	}
	path, _, _ := strings.Cut(p.ImportPath, " ")
	for _, r := range m.required {
		if (path == r.Path || strings.HasPrefix(path, r.Path+"/")) && len(r.Path) > len(n.Path) {
			n.Version, n.line = module.Version{Path: r.Path, Version: r.Version}, r.line
		}
	}
	if n.Path == "" {
		n.problem = "package " + path + ": " + p.Error.Err
	}
	return n, true
}
