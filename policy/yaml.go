package policy

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"go.yaml.in/yaml/v3"
	"golang.org/x/text/language"
	"golang.org/x/text/message"
)

//go:embed schema/*.json
var schemaFiles embed.FS

const maxYAMLDepth = 32

// decodeYAML checks a file against its JSON Schema and decodes it into out. Every mistake is reported, with file and line.
// YAML is held to what cannot be misread: no words that are booleans to some parsers, no anchors, no tags, no doubles.
// The document it returns reports further mistakes in the same way.
func decodeYAML(name, schema string, content []byte, out any) (*document, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	var root yaml.Node
	if err := decoder.Decode(&root); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := decoder.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: holds more than one document", name)
	}
	d := &document{name: name, lines: map[string]int{}}
	value := d.value(root.Content[0], "", 0)
	if len(d.errs) > 0 {
		return nil, d.err()
	}
	compiled, err := compileSchema(schema)
	if err != nil {
		return nil, err
	}
	if invalid, ok := errors.AsType[*jsonschema.ValidationError](compiled.Validate(value)); ok {
		d.invalid(invalid)
		return nil, d.err()
	}
	if err := root.Decode(out); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return d, nil
}

func compileSchema(name string) (*jsonschema.Schema, error) {
	file := "schema/" + name + ".json"
	content, err := schemaFiles.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading schema: %w", err)
	}
	raw, err := jsonschema.UnmarshalJSON(bytes.NewReader(content))
	if err != nil {
		return nil, fmt.Errorf("parsing %s: %w", file, err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource(file, raw); err != nil {
		return nil, fmt.Errorf("compiling %s: %w", file, err)
	}
	compiled, err := c.Compile(file)
	if err != nil {
		return nil, fmt.Errorf("compiling %s: %w", file, err)
	}
	return compiled, nil
}

// lineError is a mistake at a line of a file.
type lineError struct {
	file string
	line int
	text string
}

func (e *lineError) Error() string { return fmt.Sprintf("%s:%d: %s", e.file, e.line, e.text) }

// document turns YAML nodes into plain values and remembers the line of each.
type document struct {
	name  string
	lines map[string]int // by JSON pointer
	errs  []*lineError
}

func (d *document) fail(line int, format string, args ...any) {
	d.errs = append(d.errs, &lineError{d.name, line, fmt.Sprintf(format, args...)})
}

// wrong reports a mistake at a JSON pointer, or at its nearest parent that the file has.
func (d *document) wrong(at, format string, args ...any) {
	for at != "" && d.lines[at] == 0 {
		at = at[:strings.LastIndexByte(at, '/')]
	}
	d.fail(d.lines[at], format, args...)
}

// err is everything that was reported, in the order of the file.
func (d *document) err() error {
	slices.SortStableFunc(d.errs, func(a, b *lineError) int { return a.line - b.line })
	errs := make([]error, len(d.errs))
	for i, e := range d.errs {
		errs[i] = e
	}
	return errors.Join(errs...)
}

func (d *document) value(n *yaml.Node, at string, depth int) any {
	d.lines[at] = n.Line
	switch {
	case depth > maxYAMLDepth:
		d.fail(n.Line, "is nested deeper than %d", maxYAMLDepth)
		return nil
	case n.Anchor != "" || n.Kind == yaml.AliasNode:
		d.fail(n.Line, "anchors and aliases are not used here; write the value out")
		return nil
	case n.Kind == yaml.MappingNode:
		return d.mapping(n, at, depth)
	case n.Kind == yaml.SequenceNode:
		list := make([]any, len(n.Content))
		for i, item := range n.Content {
			list[i] = d.value(item, fmt.Sprintf("%s/%d", at, i), depth+1)
		}
		return list
	}
	return d.scalar(n)
}

func (d *document) mapping(n *yaml.Node, at string, depth int) any {
	object := make(map[string]any, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		name, ok := d.scalar(key).(string)
		if !ok {
			d.fail(key.Line, "key %q is no string; quote it", key.Value)
			continue
		}
		if _, double := object[name]; double {
			d.fail(key.Line, "key %q stands twice", name)
		}
		object[name] = d.value(n.Content[i+1], at+"/"+name, depth+1)
	}
	return object
}

// ambiguous are the words that YAML 1.1 takes for booleans.
var ambiguous = []string{"y", "n", "yes", "no", "on", "off"}

func (d *document) scalar(n *yaml.Node) any {
	plain := n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) == 0
	if plain && slices.Contains(ambiguous, strings.ToLower(n.Value)) {
		d.fail(n.Line, "%s is a boolean to some parsers; want true or false, or quote it", n.Value)
		return nil
	}
	if n.Style&yaml.TaggedStyle != 0 {
		d.fail(n.Line, "tag %s is not used here", n.Tag)
		return nil
	}
	switch n.Tag {
	case "!!str":
		return canonical(n.Value)
	case "!!int", "!!float", "!!bool", "!!null":
		var v any
		if err := n.Decode(&v); err != nil {
			d.fail(n.Line, "%v", err)
		}
		return v
	case "!!timestamp":
		d.fail(n.Line, "date %s is not quoted; want \"%s\"", n.Value, n.Value)
		return nil
	}
	d.fail(n.Line, "%s is of type %s, which is not used here", n.Value, n.Tag)
	return nil
}

// invalid adds the leaves of a schema error.
func (d *document) invalid(e *jsonschema.ValidationError) {
	if len(e.Causes) > 0 {
		for _, cause := range e.Causes {
			d.invalid(cause)
		}
		return
	}
	at := ""
	for _, part := range e.InstanceLocation {
		at += "/" + part
	}
	if extra, ok := e.ErrorKind.(*kind.AdditionalProperties); ok && d.lines[at+"/"+extra.Properties[0]] != 0 {
		at += "/" + extra.Properties[0]
	}
	where := strings.Join(e.InstanceLocation, ".")
	if where != "" {
		where += ": "
	}
	d.fail(d.lines[at], "%s%s", where, e.ErrorKind.LocalizedString(message.NewPrinter(language.English)))
}
