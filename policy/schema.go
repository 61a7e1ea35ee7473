package policy

import (
	"reflect"

	"github.com/open-policy-agent/opa/v1/ast"
)

// schemas are the input schemas of the compiler, made from Input: a rule that reads a field which its question does
// not have does not compile. A module says which one it means with `schemas: [{input: schema.access}]`; without, it is
// checked against release, which has every field.
func schemas() *ast.SchemaSet {
	set := ast.NewSchemaSet()
	release := schemaOf(reflect.TypeFor[Input](), true)
	set.Put(ast.SchemaRootRef, release)
	set.Put(ast.MustParseRef("schema.release"), release)
	set.Put(ast.MustParseRef("schema.access"), schemaOf(reflect.TypeFor[Input](), false))
	return set
}

func schemaOf(t reflect.Type, release bool) any {
	switch t.Kind() {
	case reflect.String:
		return map[string]any{"type": "string"}
	case reflect.Int:
		return map[string]any{"type": "integer"}
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.Pointer:
		return map[string]any{"anyOf": []any{schemaOf(t.Elem(), release), map[string]any{"type": "null"}}}
	case reflect.Slice:
		return map[string]any{"type": "array", "items": schemaOf(t.Elem(), release)}
	case reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": schemaOf(t.Elem(), release)}
	case reflect.Struct:
		properties := map[string]any{}
		for _, f := range fieldsOf(t) {
			if release || !f.release {
				properties[f.name] = schemaOf(t.FieldByIndex(f.index).Type, release)
			}
		}
		return map[string]any{"type": "object", "properties": properties, "additionalProperties": false}
	}
	panic("policy: the documents have no field of type " + t.String())
}
