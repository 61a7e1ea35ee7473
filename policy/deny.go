package policy

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/mod/semver"
)

// denyFile is deny.yaml: paths and versions that nobody gets, and nothing else, so that it can only tighten.
type denyFile struct {
	Deny []struct {
		Path     string `yaml:"path"`     // a module path, or a prefix ending in /...
		Versions string `yaml:"versions"` // a range; "" is all
	} `yaml:"deny"`
}

// denyList holds the entries by path, and those of prefixes apart.
type denyList struct {
	paths, prefixes map[string][]denied
}

// denied is a range of versions; no alternatives is all of them.
type denied []any

func parseDeny(content []byte) (denyList, error) {
	list := denyList{paths: map[string][]denied{}, prefixes: map[string][]denied{}}
	if content == nil {
		return list, nil
	}
	var file denyFile
	doc, err := decodeYAML(denyName, "deny", content, &file)
	if err != nil {
		return list, err
	}
	for i, d := range file.Deny {
		into, path := list.paths, d.Path
		if prefix, below := strings.CutSuffix(d.Path, "/..."); below {
			into, path = list.prefixes, prefix
		}
		into[path] = append(into[path], doc.versions(fmt.Sprintf("/deny/%d/versions", i), d.Versions, ""))
	}
	return list, doc.err()
}

// holds tells whether a version is on the list.
func (l denyList) holds(r *Resource) bool {
	if len(l.paths) == 0 && len(l.prefixes) == 0 {
		return false
	}
	in := func(d denied) bool { return d.has(r.Version) }
	if slices.ContainsFunc(l.paths[r.Path], in) {
		return true
	}
	return slices.ContainsFunc(r.Prefixes, func(prefix string) bool { return slices.ContainsFunc(l.prefixes[prefix], in) })
}

// has tells whether a version is in the range: all comparisons of one of the alternatives hold.
func (d denied) has(version string) bool {
	if len(d) == 0 {
		return true
	}
	return slices.ContainsFunc(d, func(alternative any) bool {
		for _, c := range alternative.([]any) {
			comparison := c.(map[string]any)
			if !slices.Contains(comparison["signs"].([]int), semver.Compare(version, comparison["version"].(string))) {
				return false
			}
		}
		return true
	})
}

// tightens tells whether b differs from an older bundle by further entries of deny.yaml alone. Files is by name.
func (b *bundle) tightens(old *bundle) bool {
	if old == nil || len(b.files)-len(old.files) > 1 {
		return false
	}
	for _, maps := range [][2]map[string][]byte{{old.files, b.files}, {b.files, old.files}} {
		for name, content := range maps[0] {
			if name != denyName && string(maps[1][name]) != string(content) {
				return false
			}
		}
	}
	return b.deny.covers(old.deny)
}

// covers tells whether each entry of another list stands in this one, too.
func (l denyList) covers(other denyList) bool {
	for _, both := range [][2]map[string][]denied{{other.paths, l.paths}, {other.prefixes, l.prefixes}} {
		for path, entries := range both[0] {
			for _, d := range entries {
				if !slices.ContainsFunc(both[1][path], func(mine denied) bool { return fmt.Sprint(mine) == fmt.Sprint(d) }) {
					return false
				}
			}
		}
	}
	return true
}
