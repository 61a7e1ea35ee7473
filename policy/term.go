package policy

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"
	"golang.org/x/text/unicode/norm"
)

// Input and decision cross between Go and Rego by their json tags, without JSON in between.

// field is one field of a struct as Rego sees it; fields of embedded structs belong to the outer one.
type field struct {
	name    string
	term    *ast.Term
	index   []int
	release bool // exists for the release question alone
}

var structFields sync.Map // reflect.Type → []field, filled once per type

func fieldsOf(t reflect.Type) []field {
	if known, ok := structFields.Load(t); ok {
		return known.([]field)
	}
	var fields []field
	for i := range t.NumField() {
		f := t.Field(i)
		release := f.Tag.Get("policy") == "release"
		if f.Anonymous {
			for _, inner := range fieldsOf(f.Type) {
				inner.index = append([]int{i}, inner.index...)
				inner.release = inner.release || release
				fields = append(fields, inner)
			}
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name != "-" {
			fields = append(fields, field{name, ast.StringTerm(name), []int{i}, release})
		}
	}
	structFields.Store(t, fields)
	return fields
}

// canonical is the one Unicode form of a string, so that two spellings of a group are one group and one key.
func canonical(s string) string {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return norm.NFC.String(s)
		}
	}
	return s
}

// sortedKeys are the keys of a string map in canonical order and form, without doubles; raw names each one's entry.
func sortedKeys(v reflect.Value) (keys []string, raw map[string]string) {
	keys = make([]string, 0, v.Len())
	raw = make(map[string]string, v.Len())
	for it := v.MapRange(); it.Next(); {
		original := it.Key().String()
		key := canonical(original)
		if other, double := raw[key]; !double {
			keys = append(keys, key)
			raw[key] = original
		} else if original < other {
			raw[key] = original
		}
	}
	slices.Sort(keys)
	return keys, raw
}

// toTerm is a Go value as a Rego term.
func toTerm(v reflect.Value) *ast.Term {
	switch v.Kind() {
	case reflect.String:
		return ast.StringTerm(canonical(v.String()))
	case reflect.Int:
		return ast.IntNumberTerm(int(v.Int()))
	case reflect.Bool:
		return ast.BooleanTerm(v.Bool())
	case reflect.Pointer:
		if v.IsNil() {
			return ast.NullTerm()
		}
		return toTerm(v.Elem())
	case reflect.Slice:
		terms := make([]*ast.Term, v.Len())
		for i := range terms {
			terms[i] = toTerm(v.Index(i))
		}
		return ast.ArrayTerm(terms...)
	case reflect.Map:
		keys, raw := sortedKeys(v)
		object := ast.NewObject()
		for _, key := range keys {
			object.Insert(ast.StringTerm(key), toTerm(v.MapIndex(reflect.ValueOf(raw[key]))))
		}
		return ast.NewTerm(object)
	case reflect.Struct:
		object := ast.NewObject()
		for _, f := range fieldsOf(v.Type()) {
			object.Insert(f.term, toTerm(v.FieldByIndex(f.index)))
		}
		return ast.NewTerm(object)
	}
	panic("policy: the documents have no field of type " + v.Type().String())
}

// fromTerm fills a Go value from a Rego value. Every field must be there, none may be unknown, every type must fit.
func fromTerm(path string, value ast.Value, v reflect.Value) error {
	switch v.Kind() {
	case reflect.String:
		if s, ok := value.(ast.String); ok {
			v.SetString(string(s))
			return nil
		}
	case reflect.Int:
		if n, ok := value.(ast.Number); ok {
			if i, ok := n.Int(); ok {
				v.SetInt(int64(i))
				return nil
			}
		}
	case reflect.Bool:
		if b, ok := value.(ast.Boolean); ok {
			v.SetBool(bool(b))
			return nil
		}
	case reflect.Pointer:
		if _, ok := value.(ast.Null); ok {
			return nil
		}
		v.Set(reflect.New(v.Type().Elem()))
		return fromTerm(path, value, v.Elem())
	case reflect.Slice:
		if array, ok := value.(*ast.Array); ok {
			return sliceFrom(path, array, v)
		}
	case reflect.Map:
		if object, ok := value.(ast.Object); ok {
			return mapFrom(path, object, v)
		}
	case reflect.Struct:
		if object, ok := value.(ast.Object); ok {
			return structFrom(path, object, v)
		}
	}
	return fmt.Errorf("%w: %s is %s; want %s", ErrPolicy, path, short(value), v.Kind())
}

func sliceFrom(path string, array *ast.Array, v reflect.Value) error {
	if array.Len() == 0 {
		return nil
	}
	v.Set(reflect.MakeSlice(v.Type(), array.Len(), array.Len()))
	for i := range array.Len() {
		if err := fromTerm(fmt.Sprintf("%s[%d]", path, i), array.Elem(i).Value, v.Index(i)); err != nil {
			return err
		}
	}
	return nil
}

func mapFrom(path string, object ast.Object, v reflect.Value) error {
	if object.Len() == 0 {
		return nil
	}
	v.Set(reflect.MakeMapWithSize(v.Type(), object.Len()))
	return object.Iter(func(key, value *ast.Term) error {
		name, ok := key.Value.(ast.String)
		if !ok {
			return fmt.Errorf("%w: %s has key %s; want strings", ErrPolicy, path, short(key.Value))
		}
		element := reflect.New(v.Type().Elem()).Elem()
		if err := fromTerm(path+"."+string(name), value.Value, element); err != nil {
			return err
		}
		v.SetMapIndex(reflect.ValueOf(string(name)), element)
		return nil
	})
}

func structFrom(path string, object ast.Object, v reflect.Value) error {
	fields := fieldsOf(v.Type())
	for _, f := range fields {
		value := object.Get(f.term)
		if value == nil {
			return fmt.Errorf("%w: %s.%s is missing", ErrPolicy, path, f.name)
		}
		if err := fromTerm(path+"."+f.name, value.Value, v.FieldByIndex(f.index)); err != nil {
			return err
		}
	}
	if object.Len() == len(fields) {
		return nil
	}
	return object.Iter(func(key, _ *ast.Term) error {
		if !slices.ContainsFunc(fields, func(f field) bool { return f.term.Equal(key) }) {
			return fmt.Errorf("%w: %s.%s is not a field of the document", ErrPolicy, path, short(key.Value))
		}
		return nil
	})
}

// short is a Rego value for an error text.
func short(value ast.Value) string {
	s := value.String()
	if len(s) > 60 {
		s = s[:60] + "…"
	}
	return s
}

// appendJSON writes the JSON of a term that toTerm made.
func appendJSON(dst []byte, value ast.Value) []byte {
	switch value := value.(type) {
	case ast.String:
		return appendQuoted(dst, string(value))
	case ast.Number:
		return append(dst, value...)
	case ast.Boolean:
		return strconv.AppendBool(dst, bool(value))
	case *ast.Array:
		dst = append(dst, '[')
		for i := range value.Len() {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendJSON(dst, value.Elem(i).Value)
		}
		return append(dst, ']')
	case ast.Object:
		dst = append(dst, '{')
		for i, key := range value.Keys() {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(appendJSON(dst, key.Value), ':')
			dst = appendJSON(dst, value.Get(key).Value)
		}
		return append(dst, '}')
	}
	return append(dst, "null"...)
}

func appendQuoted(dst []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c > 0x7e || c == '"' || c == '\\' {
			quoted, err := json.Marshal(s)
			if err != nil {
				panic("policy: a string has no JSON: " + err.Error())
			}
			return append(dst, quoted...)
		}
	}
	return append(append(append(dst, '"'), s...), '"')
}
