package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// A fault is one mistake in a configuration file: where it stands and what would be right.
type fault struct {
	line int
	text string
}

// A document is a decoded configuration file with the line of every key in it.
type document struct {
	name   string         // as errors print it
	lines  map[string]int // key path, as in "mirror.upstreams[1]", to its line
	faults []fault
}

// decodeStrict reads YAML text into the struct that v points to. It goes on after a mistake, so that
// every unknown key, doubled key and wrong type is reported at once, each with its line.
func decodeStrict(name string, text []byte, v any) *document {
	d := &document{name: name, lines: map[string]int{}}
	if !utf8.Valid(text) {
		d.faults = append(d.faults, fault{1, "not UTF-8 text"})
		return d
	}
	var root, more yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	if err := decoder.Decode(&root); err != nil && !errors.Is(err, io.EOF) {
		d.syntax(err)
		return d
	}
	if err := decoder.Decode(&more); err == nil {
		d.fault(&more, "", "a second document begins; want one")
	} else if !errors.Is(err, io.EOF) {
		d.syntax(err)
	}
	if root.Kind == 0 || isNull(root.Content[0]) {
		return d // an empty file asks for the defaults
	}
	d.decode(root.Content[0], reflect.ValueOf(v).Elem(), "")
	return d
}

// syntax notes an error of the YAML parser, whose text is "yaml: line N: …".
func (d *document) syntax(err error) {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 1
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		number, what, _ := strings.Cut(rest, ": ")
		if n, err := strconv.Atoi(number); err == nil {
			line, text = n, what
		}
	}
	d.faults = append(d.faults, fault{line, "not YAML: " + text})
}

// invalid adds what a section's Validate found. Each error text begins with the key's path in the section.
func (d *document) invalid(section string, errs []error) {
	for _, err := range errs {
		text := err.Error()
		if section != "" {
			text = section + "." + text
		}
		key, _, _ := strings.Cut(text, ": ")
		d.faults = append(d.faults, fault{d.lineOf(key), text})
	}
}

// lineOf is the line of a key, or of the nearest key above it that the file has, or 0.
func (d *document) lineOf(key string) int {
	for key != "" {
		if line, ok := d.lines[key]; ok {
			return line
		}
		key = key[:max(strings.LastIndexAny(key, ".["), 0)]
	}
	return 0
}

// err joins all mistakes in the order of the file, one a line, or is nil.
func (d *document) err() error {
	slices.SortStableFunc(d.faults, func(a, b fault) int { return a.line - b.line })
	var errs []error
	for _, f := range d.faults {
		if f.line == 0 {
			errs = append(errs, fmt.Errorf("%s: %s", d.name, f.text))
			continue
		}
		errs = append(errs, fmt.Errorf("%s:%d: %s", d.name, f.line, f.text))
	}
	return errors.Join(errs...)
}

func (d *document) fault(n *yaml.Node, path, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if path != "" {
		text = path + ": " + text
	}
	d.faults = append(d.faults, fault{n.Line, text})
}

// decode fills v from n. What is absent or null keeps its zero value.
func (d *document) decode(n *yaml.Node, v reflect.Value, path string) {
	if path != "" {
		if _, known := d.lines[path]; !known {
			d.lines[path] = n.Line
		}
	}
	if n.Kind == yaml.AliasNode {
		d.fault(n, path, "is an alias; write the value out")
		return
	}
	if isNull(n) {
		return
	}
	switch {
	case v.Kind() == reflect.Pointer: // of what may be absent
		v.Set(reflect.New(v.Type().Elem()))
		d.decode(n, v.Elem(), path)
	case v.Type() == reflect.TypeFor[time.Duration]():
		d.duration(n, v, path)
	case v.Kind() == reflect.Struct:
		d.mapping(n, v, path)
	case v.Kind() == reflect.Slice:
		d.sequence(n, v, path)
	case v.Kind() == reflect.Map:
		d.table(n, v, path)
	default:
		d.scalar(n, v, path)
	}
}

func (d *document) mapping(n *yaml.Node, v reflect.Value, path string) {
	fields := fieldsOf(v.Type())
	if n.Kind != yaml.MappingNode {
		d.fault(n, path, "is %s; want the keys %s", describe(n), strings.Join(fields.names, ", "))
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		at := join(path, key.Value)
		if first, doubled := seen[key.Value]; doubled {
			d.fault(key, at, "stands twice, first in line %d", first)
			continue
		}
		seen[key.Value] = key.Line
		index, known := fields.index[key.Value]
		if !known {
			d.fault(key, at, "unknown key%s", suggest(key.Value, fields.names))
			continue
		}
		d.lines[at] = key.Line
		d.decode(value, v.Field(index), at)
	}
}

func (d *document) sequence(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.SequenceNode {
		d.fault(n, path, "is %s; want a list, as in [a, b]", describe(n))
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, item := range n.Content {
		d.decode(item, v.Index(i), fmt.Sprintf("%s[%d]", path, i))
	}
}

func (d *document) table(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.MappingNode {
		d.fault(n, path, "is %s; want keys and texts", describe(n))
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i].Value
		if v.MapIndex(reflect.ValueOf(key)).IsValid() {
			d.fault(n.Content[i], join(path, key), "stands twice")
			continue
		}
		value := reflect.New(v.Type().Elem()).Elem()
		d.decode(n.Content[i+1], value, join(path, key))
		v.SetMapIndex(reflect.ValueOf(key), value)
	}
}

func (d *document) duration(n *yaml.Node, v reflect.Value, path string) {
	length, err := time.ParseDuration(n.Value)
	if n.Kind != yaml.ScalarNode || err != nil {
		d.fault(n, path, "is %s; want a length of time with its unit, as in 90s or 5m", describe(n))
		return
	}
	v.SetInt(int64(length))
}

func (d *document) scalar(n *yaml.Node, v reflect.Value, path string) {
	switch tag := n.ShortTag(); {
	case n.Kind != yaml.ScalarNode:
		d.fault(n, path, "is %s; want %s", describe(n), wanted(v))
	case v.Kind() == reflect.String && tag == "!!str":
		v.SetString(n.Value)
	case v.Kind() == reflect.Bool && tag == "!!bool":
		v.SetBool(strings.EqualFold(n.Value, "true"))
	case v.CanInt() && tag == "!!int":
		number, err := strconv.ParseInt(strings.ReplaceAll(n.Value, "_", ""), 0, v.Type().Bits())
		if err != nil {
			d.fault(n, path, "%s is no whole number of %d bits", n.Value, v.Type().Bits())
			return
		}
		v.SetInt(number)
	case v.Kind() == reflect.String:
		d.fault(n, path, "is %s; want text: put it in quotes", describe(n))
	default:
		d.fault(n, path, "is %s; want %s", describe(n), wanted(v))
	}
}

func wanted(v reflect.Value) string {
	switch {
	case v.Kind() == reflect.Bool:
		return "true or false"
	case v.CanInt():
		return "a whole number"
	}
	return "text"
}

// describe names a value as a person who wrote it would.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a table"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!int", "!!float":
		return "the number " + n.Value
	case "!!bool":
		return "the switch " + n.Value
	case "!!timestamp":
		return "the date " + n.Value
	}
	return strconv.Quote(n.Value)
}

type fields struct {
	index map[string]int
	names []string
}

func fieldsOf(t reflect.Type) fields {
	f := fields{index: map[string]int{}}
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
		if name == "" || name == "-" {
			continue
		}
		f.index[name] = i
		f.names = append(f.names, name)
	}
	return f
}

// suggest proposes the known key that was probably meant, else lists them all.
func suggest(key string, known []string) string {
	best, least := "", 3
	for _, k := range known {
		if n := distance(key, k); n < least {
			best, least = k, n
		}
	}
	if best != "" {
		return fmt.Sprintf("; did you mean %q?", best)
	}
	return "; known here: " + strings.Join(known, ", ")
}

// distance is the Levenshtein distance of two short words.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
