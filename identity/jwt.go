package identity

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxDepth is how deep the JSON of a token may nest.
const maxDepth = 16

// A jws is a compact JSON Web Token that was read strictly and not yet believed.
type jws struct {
	alg, kid string
	issuer   string
	claims   map[string]json.RawMessage
}

// looksLikeJWT tells a JSON Web Token from anything else at the cost of one scan.
func looksLikeJWT(b []byte) bool {
	return bytes.HasPrefix(b, []byte("eyJ")) && bytes.Count(b, []byte(".")) == 2
}

// inspect reads a token strictly: three segments of unpadded base64url, a header
// without key material, JSON without duplicate names. It verifies nothing; what
// it refuses, no verifier needs to see.
func inspect(raw string) (*jws, error) {
	head, rest, ok := strings.Cut(raw, ".")
	body, sig, ok2 := strings.Cut(rest, ".")
	if !ok || !ok2 || sig == "" || strings.Contains(sig, ".") {
		return nil, errors.New("reading token: want three segments")
	}
	header, err := segment(head)
	if err != nil {
		return nil, fmt.Errorf("reading header of token: %w", err)
	}
	t := &jws{}
	if err := t.readHeader(header); err != nil {
		return nil, fmt.Errorf("reading header of token: %w", err)
	}
	if t.claims, err = segment(body); err != nil {
		return nil, fmt.Errorf("reading claims of token: %w", err)
	}
	if t.issuer, err = text(t.claims, "iss"); err != nil {
		return nil, fmt.Errorf("reading claims of token: %w", err)
	}
	return t, nil
}

// readHeader takes algorithm and key id. Keys come from the issuer's key set
// alone, so a header that brings a key or a place to fetch one is refused, and so
// is one that demands what we do not know (crit) or says that this is no ID token.
func (t *jws) readHeader(header map[string]json.RawMessage) (err error) {
	for _, name := range []string{"jwk", "jku", "x5u", "x5c", "crit", "b64", "enc", "zip", "cty"} {
		if _, ok := header[name]; ok {
			return fmt.Errorf("%q is not accepted", name)
		}
	}
	if t.alg, err = text(header, "alg"); err != nil {
		return err
	}
	if _, ok := header["kid"]; ok {
		if t.kid, err = text(header, "kid"); err != nil {
			return err
		}
	}
	if _, ok := header["typ"]; ok {
		typ, err := text(header, "typ")
		if err != nil || !strings.EqualFold(typ, "JWT") {
			return fmt.Errorf("typ %q is no ID token", typ)
		}
	}
	return nil
}

// segment decodes one segment into its members.
func segment(s string) (map[string]json.RawMessage, error) {
	data, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, err
	}
	return strictObject(data)
}

// strictObject reads a JSON object in which no name comes twice at any depth.
// Names that differ in case alone count as the same one, since a decoder that
// ignores case would take either.
func strictObject(data []byte) (map[string]json.RawMessage, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("not UTF-8")
	}
	if err := checkNames(data); err != nil {
		return nil, err
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(data, &members); err != nil {
		return nil, err
	}
	if members == nil {
		return nil, errors.New("not an object")
	}
	return members, nil
}

func checkNames(data []byte) error {
	type level struct {
		names map[string]bool // nil in an array
		value bool            // the next token is a value, not a name
	}
	var stack []level
	dec := json.NewDecoder(bytes.NewReader(data))
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if top := len(stack) - 1; top >= 0 && stack[top].names != nil {
			if name, ok := tok.(string); ok && !stack[top].value {
				if stack[top].names[fold(name)] {
					return fmt.Errorf("%.64q comes twice", name)
				}
				stack[top].names[fold(name)] = true
				stack[top].value = true
				continue
			}
			stack[top].value = false
		}
		switch tok {
		case json.Delim('{'):
			stack = append(stack, level{names: map[string]bool{}})
		case json.Delim('['):
			stack = append(stack, level{})
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:len(stack)-1]
		}
		if len(stack) > maxDepth {
			return fmt.Errorf("nested deeper than %d", maxDepth)
		}
	}
}

// fold gives one form to all names that differ in case alone.
func fold(name string) string {
	return strings.Map(func(r rune) rune {
		least := r
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			least = min(least, f)
		}
		return least
	}, name)
}

// text reads a member that must be a string and not empty.
func text(members map[string]json.RawMessage, name string) (string, error) {
	var s string
	raw, ok := members[name]
	if !ok {
		return "", fmt.Errorf("%q is missing", name)
	}
	if err := json.Unmarshal(raw, &s); err != nil || s == "" {
		return "", fmt.Errorf("%q is no text", name)
	}
	return s, nil
}
