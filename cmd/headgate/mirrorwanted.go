package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"

	"github.com/headgate/headgate/gateway/mirror"
)

// readWanted reads which versions files name: go.mod, go.sum, or MODULE@VERSION in each line.
func readWanted(files []string) ([]mirror.Wanted, error) {
	var all []mirror.Wanted
	place := map[module.Version]int{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, &useError{fmt.Errorf("reading the versions: %w", err)}
		}
		list, err := wantedIn(filepath.Base(file), text)
		if err != nil {
			return nil, &useError{fmt.Errorf("reading %s: %w", file, err)}
		}
		for _, w := range list {
			v := module.Version{Path: w.Path, Version: w.Version}
			if i, ok := place[v]; ok {
				all[i].ModOnly = all[i].ModOnly && w.ModOnly
				continue
			}
			place[v] = len(all)
			all = append(all, w.Wanted)
		}
	}
	return all, nil
}

// A placed version stands in a line of a file.
type placed struct {
	mirror.Wanted
	line int
}

func wantedIn(name string, text []byte) ([]placed, error) {
	if filepath.Ext(name) == ".mod" {
		return wantedInMod(name, text)
	}
	var list []placed
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		var w mirror.Wanted
		var err error
		switch {
		case len(fields) == 0:
			continue
		case len(fields) == 3 && strings.HasPrefix(fields[2], "h1:"): // go.sum
			version, modOnly := strings.CutSuffix(fields[1], "/go.mod")
			w, err = parseWanted(fields[0] + "@" + version)
			w.ModOnly = modOnly
		case len(fields) == 1:
			w, err = parseWanted(fields[0])
		default:
			err = fmt.Errorf("it is neither MODULE@VERSION nor a line of go.sum")
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		list = append(list, placed{w, number})
	}
	return list, nil
}

// wantedInMod takes the requirements, as far as they are not replaced by a folder.
func wantedInMod(name string, text []byte) ([]placed, error) {
	f, err := modfile.Parse(name, text, nil)
	if err != nil {
		return nil, err
	}
	replaced := map[module.Version]module.Version{}
	for _, r := range f.Replace {
		replaced[r.Old] = r.New
	}
	var list []placed
	for _, r := range f.Require {
		v, line := r.Mod, r.Syntax.Start.Line
		for _, old := range []module.Version{v, {Path: v.Path}} {
			if to, ok := replaced[old]; ok {
				v = to
				break
			}
		}
		if v.Version != "" {
			list = append(list, placed{mirror.Wanted{Path: v.Path, Version: v.Version}, line})
		}
	}
	return list, nil
}

// parseWanted reads MODULE@VERSION; the version is canonical.
func parseWanted(arg string) (mirror.Wanted, error) {
	path, version, _ := strings.Cut(arg, "@")
	if err := module.Check(path, version); err != nil {
		return mirror.Wanted{}, &useError{fmt.Errorf("%q is no version of a module: %w; want MODULE@VERSION, as in golang.org/x/mod@v0.20.0", arg, err)}
	}
	return mirror.Wanted{Path: path, Version: version}, nil
}
