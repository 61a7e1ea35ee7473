package policy

import (
	"encoding/binary"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/dependencies"
)

// readSet is the part of the input that an entry point reads, as a tree over policy.Input. The input is cut to it
// before evaluation, and its values are the key of the cache: so an answer is a function of its key, whatever the
// analysis may have missed.
type readSet struct {
	root  *reads
	paths []string // leaves, sorted, for people
}

// reads is one node: the whole value, some fields of a struct, or some keys of a map.
type reads struct {
	whole  bool
	fields []fieldReads
	keys   []keyReads
}

type fieldReads struct {
	field field
	sub   *reads
}

type keyReads struct {
	key  string
	term *ast.Term
	sub  *reads
}

// newReadSet finds what the query reads of the input. What the input does not have, or the access question may not
// see, is an error.
func newReadSet(compiler *ast.Compiler, query ast.Body, release bool) (*readSet, error) {
	refs, err := dependencies.Base(compiler, query)
	if err != nil {
		return nil, fmt.Errorf("finding what %v reads: %w", query, err)
	}
	set := &readSet{root: &reads{}}
	for _, ref := range refs {
		if !ref.HasPrefix(ast.InputRootRef) {
			continue
		}
		var path []string
		for _, term := range ref[1:] {
			name, ok := term.Value.(ast.String)
			if !ok {
				break // an index into an array: the whole array is read
			}
			path = append(path, string(name))
		}
		if err := set.root.add(reflect.TypeFor[Input](), path, release); err != nil {
			return nil, fmt.Errorf("%w: %v reads %v, %w", ErrPolicy, query, ref, err)
		}
		set.paths = append(set.paths, strings.Join(append([]string{"input"}, path...), "."))
	}
	slices.Sort(set.paths)
	set.paths = slices.Compact(set.paths)
	return set, nil
}

func (n *reads) add(t reflect.Type, path []string, release bool) error {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if n.whole {
		return nil
	}
	if len(path) == 0 && (release || t.Kind() != reflect.Struct) {
		*n = reads{whole: true}
		return nil
	}
	switch t.Kind() {
	case reflect.Struct:
		return n.addField(t, path, release)
	case reflect.Map:
		sub := n.key(path[0])
		return sub.add(t.Elem(), path[1:], release)
	}
	*n = reads{whole: true} // a step into a scalar or an array is undefined in Rego, and so is it here
	return nil
}

// addField adds a field of a struct; with no path left, every field that access may see.
func (n *reads) addField(t reflect.Type, path []string, release bool) error {
	found := false
	for _, f := range fieldsOf(t) {
		if len(path) > 0 && f.name != path[0] {
			continue
		}
		found = true
		if f.release && !release {
			if len(path) == 0 {
				continue
			}
			return fmt.Errorf("which access does not have")
		}
		rest := path
		if len(path) > 0 {
			rest = path[1:]
		}
		if err := n.field(f).add(t.FieldByIndex(f.index).Type, rest, release); err != nil {
			return err
		}
	}
	if !found {
		return fmt.Errorf("which the input does not have")
	}
	return nil
}

func (n *reads) field(f field) *reads {
	for _, known := range n.fields {
		if known.field.name == f.name {
			return known.sub
		}
	}
	sub := &reads{}
	n.fields = append(n.fields, fieldReads{f, sub})
	slices.SortFunc(n.fields, func(a, b fieldReads) int { return strings.Compare(a.field.name, b.field.name) })
	return sub
}

func (n *reads) key(key string) *reads {
	for _, known := range n.keys {
		if known.key == key {
			return known.sub
		}
	}
	sub := &reads{}
	n.keys = append(n.keys, keyReads{key, ast.StringTerm(key), sub})
	slices.SortFunc(n.keys, func(a, b keyReads) int { return strings.Compare(a.key, b.key) })
	return sub
}

// project is the input cut to the read-set.
func (n *reads) project(v reflect.Value) *ast.Term {
	if n.whole {
		return toTerm(v)
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return ast.NullTerm()
		}
		return n.project(v.Elem())
	case reflect.Map:
		object := ast.NewObject()
		for _, k := range n.keys {
			if value, ok := lookup(v, k.key); ok {
				object.Insert(k.term, k.sub.project(value))
			}
		}
		return ast.NewTerm(object)
	}
	object := ast.NewObject()
	for _, f := range n.fields {
		object.Insert(f.field.term, f.sub.project(v.FieldByIndex(f.field.index)))
	}
	return ast.NewTerm(object)
}

// lookup finds a canonical key in a map whose keys may have another Unicode form.
func lookup(v reflect.Value, key string) (reflect.Value, bool) {
	if value := v.MapIndex(reflect.ValueOf(key)); value.IsValid() {
		return value, true
	}
	for i := range len(key) {
		if key[i] >= 0x80 {
			if _, raw := sortedKeys(v); raw[key] != "" {
				return v.MapIndex(reflect.ValueOf(raw[key])), true
			}
			break
		}
	}
	return reflect.Value{}, false
}

// encoder writes cache keys: each value with its length or kind before it, so that no two inputs share a key.
type encoder struct {
	buf  []byte
	keys []string // scratch for sorting
}

func (e *encoder) reads(n *reads, v reflect.Value) {
	if n.whole {
		e.value(v)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			e.buf = append(e.buf, 0)
			return
		}
		e.buf = append(e.buf, 1)
		e.reads(n, v.Elem())
	case reflect.Map:
		for _, k := range n.keys {
			value, ok := lookup(v, k.key)
			if !ok {
				e.buf = append(e.buf, 0)
				continue
			}
			e.buf = append(e.buf, 1)
			e.reads(k.sub, value)
		}
	default:
		for _, f := range n.fields {
			e.reads(f.sub, v.FieldByIndex(f.field.index))
		}
	}
}

func (e *encoder) value(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		e.text(canonical(v.String()))
	case reflect.Int:
		e.buf = binary.AppendVarint(e.buf, v.Int())
	case reflect.Bool:
		e.flag(v.Bool())
	case reflect.Pointer:
		e.flag(!v.IsNil())
		if !v.IsNil() {
			e.value(v.Elem())
		}
	case reflect.Slice:
		e.buf = binary.AppendUvarint(e.buf, uint64(v.Len()))
		for i := range v.Len() {
			e.value(v.Index(i))
		}
	case reflect.Map:
		e.object(v)
	case reflect.Struct:
		for _, f := range fieldsOf(v.Type()) {
			e.value(v.FieldByIndex(f.index))
		}
	}
}

// object writes a map in sorted order. Groups and waivers come with every request, so they have a path of their own.
func (e *encoder) object(v reflect.Value) {
	if set, ok := v.Interface().(map[string]bool); ok && e.set(set) {
		return
	}
	keys, raw := sortedKeys(v)
	e.buf = binary.AppendUvarint(e.buf, uint64(len(keys)))
	for _, key := range keys {
		e.text(key)
		e.value(v.MapIndex(reflect.ValueOf(raw[key])))
	}
}

// set writes a set whose names are in canonical form already, and tells whether they are.
func (e *encoder) set(set map[string]bool) bool {
	e.keys = e.keys[:0]
	for key := range set {
		if canonical(key) != key {
			return false
		}
		e.keys = append(e.keys, key)
	}
	slices.Sort(e.keys)
	e.buf = binary.AppendUvarint(e.buf, uint64(len(e.keys)))
	for _, key := range e.keys {
		e.text(key)
		e.flag(set[key])
	}
	return true
}

func (e *encoder) text(s string) {
	e.buf = binary.AppendUvarint(e.buf, uint64(len(s)))
	e.buf = append(e.buf, s...)
}

func (e *encoder) flag(b bool) {
	if b {
		e.buf = append(e.buf, 1)
	} else {
		e.buf = append(e.buf, 0)
	}
}
