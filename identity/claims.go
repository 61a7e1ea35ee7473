package identity

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// maxSubjectID is the longest sub of OpenID Connect Core §2, in bytes.
const maxSubjectID = 255

// subject maps verified claims to a subject, once; from here on it is compared
// as bytes.
func (i *issuer) subject(claims map[string]json.RawMessage) (Subject, error) {
	id, err := text(claims, "sub")
	if err != nil {
		return Subject{}, err
	}
	if err := checkSubjectID(id); err != nil {
		return Subject{}, err
	}
	sub := Subject{
		Type: i.cfg.Type, ID: id, Issuer: i.cfg.URL, Name: displayName(claims),
		Method: MethodOIDC, Assurance: assurance(claims),
	}
	if sub.Type == Workload {
		sub.Method = MethodWorkload
		if sub.CI, err = i.job(claims); err != nil {
			return Subject{}, err
		}
	}
	if i.cfg.GroupsClaim != "" && claims[i.cfg.GroupsClaim] != nil {
		groups, err := stringList(claims[i.cfg.GroupsClaim])
		if err != nil {
			return Subject{}, fmt.Errorf("reading claim %q: %w", i.cfg.GroupsClaim, err)
		}
		sub.Groups = canonicalGroups(groups)
	}
	if i.cfg.TeamClaim != "" {
		if sub.Team, err = optional(claims, i.cfg.TeamClaim); err != nil {
			return Subject{}, err
		}
	}
	for label, claim := range i.cfg.Labels {
		value, err := optional(claims, claim)
		if err != nil {
			return Subject{}, err
		}
		if value == "" {
			continue
		}
		if sub.Labels == nil {
			sub.Labels = map[string]string{}
		}
		sub.Labels[label] = value
	}
	return sub, nil
}

func checkSubjectID(id string) error {
	if id == "" || len(id) > maxSubjectID || !utf8.ValidString(id) || strings.ContainsFunc(id, unicode.IsControl) {
		return errors.New("subject id is empty, longer than 255 bytes or not printable")
	}
	return nil
}

// optional reads a claim that is text, if it is there. An e-mail address that the
// issuer did not verify is not there.
func optional(claims map[string]json.RawMessage, name string) (string, error) {
	if name == "email" {
		return verifiedEmail(claims), nil
	}
	if raw, ok := claims[name]; !ok || string(raw) == `""` || string(raw) == "null" {
		return "", nil
	}
	s, err := text(claims, name)
	if err != nil {
		return "", fmt.Errorf("reading claim: %w", err)
	}
	return norm.NFC.String(s), nil
}

// verifiedEmail gives the e-mail address if email_verified is the boolean true
// and the address is one plain ASCII address.
func verifiedEmail(claims map[string]json.RawMessage) string {
	if string(claims["email_verified"]) != "true" {
		return ""
	}
	mail, err := text(claims, "email")
	if err != nil || len(mail) > 254 || strings.Count(mail, "@") != 1 || strings.HasPrefix(mail, "@") || strings.HasSuffix(mail, "@") {
		return ""
	}
	for i := range len(mail) {
		if c := mail[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),:;<>[\]`, c) >= 0 {
			return ""
		}
	}
	return mail
}

// displayName is what people call the subject. A name that looks like an address
// would pass for a verified one, so it is left out.
func displayName(claims map[string]json.RawMessage) string {
	if mail := verifiedEmail(claims); mail != "" {
		return mail
	}
	name, err := text(claims, "preferred_username")
	if err != nil || strings.Contains(name, "@") || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return ""
	}
	return norm.NFC.String(name)
}

// assurance is 2 if the issuer says that several factors were used (RFC 8176).
func assurance(claims map[string]json.RawMessage) int {
	if methods, err := stringList(claims["amr"]); err == nil && slices.Contains(methods, "mfa") {
		return 2
	}
	return 1
}

// stringList reads a list of strings, or one string as a list of one.
func stringList(raw json.RawMessage) ([]string, error) {
	var one string
	if err := json.Unmarshal(raw, &one); err == nil && string(raw) != "null" {
		return []string{one}, nil
	}
	var elements []*string
	if err := json.Unmarshal(raw, &elements); err != nil {
		return nil, errors.New("want text or a list of text")
	}
	list := make([]string, 0, len(elements))
	for _, e := range elements {
		if e == nil {
			return nil, errors.New("want text or a list of text")
		}
		list = append(list, *e)
	}
	return list, nil
}

// canonicalGroups gives each group one spelling (NFC), once, in order.
func canonicalGroups(groups []string) []string {
	if len(groups) == 0 {
		return nil
	}
	out := make([]string, 0, len(groups))
	for _, g := range groups {
		if g != "" {
			out = append(out, norm.NFC.String(g))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
