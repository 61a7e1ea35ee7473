package policy

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// DecisionSchema is the version of the decision document that this package understands.
const DecisionSchema = 1

// Effect is what policy answers.
type Effect string

// Remedy is what can turn a denial into an allow.
type Remedy string

// The effects and remedies. The zero Effect allows nothing.
const (
	Allow Effect = "allow"
	Deny  Effect = "deny"

	RemedyNone   Remedy = "none"   // nothing that the developer can do or wait for
	RemedyWait   Remedy = "wait"   // a day or a fact will change it
	RemedyWaiver Remedy = "waiver" // a waiver can allow it
)

// Decision is policy's answer to one question. It is shared between callers: treat its slices and maps as read-only.
type Decision struct {
	Schema        int               `json:"schema"`
	Effect        Effect            `json:"effect"`
	Remedy        Remedy            `json:"remedy"`  // only with deny
	Visible       bool              `json:"visible"` // may be listed; false with allow: hidden, usable when pinned
	Codes         []string          `json:"codes"`   // sorted, stable ids such as COOLDOWN
	Reasons       []Reason          `json:"reasons"` // hardest first, at most 8
	Warnings      []Reason          `json:"warnings"`
	Obligations   []Obligation      `json:"obligations"`
	Advice        Advice            `json:"advice"`
	ValidUntilDay *int              `json:"valid_until_day"` // next UTC day on which the same input may get another answer
	Waived        []Waived          `json:"waived"`          // what was forgiven
	Profile       string            `json:"profile"`         // access only: how strict releases are judged
	Waivers       []string          `json:"waivers"`         // access only: ids that cover the path and team
	Labels        map[string]string `json:"labels"`

	Eval      Eval            `json:"-"`
	Projected json.RawMessage `json:"-"` // the input as it was evaluated, for the audit record; the answer is a function of it
}

// Reason is one finding. The text is Template with its {params} filled in; policy writes no free text.
type Reason struct {
	Code     string            `json:"code"`
	Rule     string            `json:"rule"`
	Severity int               `json:"severity"` // 0 to 4
	Template string            `json:"template"`
	Doc      string            `json:"doc"` // address of an explanation, "" if none
	Params   map[string]string `json:"params"`
}

// Obligation is something that the gateway must do when it acts on the decision.
type Obligation struct {
	Kind   string            `json:"kind"` // log_full, notify_owner
	Params map[string]string `json:"params"`
}

// Advice is what works now; it may be ignored.
type Advice struct {
	UpgradeTo        string   `json:"upgrade_to"`
	AvailableFromDay int      `json:"available_from_day"` // 0 unknown
	MissingFacts     []string `json:"missing_facts"`
	Waiver           Need     `json:"waiver"`
	Contact          string   `json:"contact"`
}

// Need is the waiver that would allow it.
type Need struct {
	Code string `json:"code"`
	Path string `json:"path"`
}

// Waived is a finding that a waiver forgave.
type Waived struct {
	Code       string `json:"code"`
	Waiver     string `json:"waiver"`
	ExpiresDay int    `json:"expires_day"`
}

// Eval says how the answer came about, for the audit record.
type Eval struct {
	Entry   string `json:"entry"` // access, release
	Cached  bool   `json:"cached"`
	NS      int64  `json:"ns"` // time of the evaluation; 0 when no evaluation was needed
	KeyHash string `json:"key_hash"`
}

const (
	maxReasons = 8
	maxField   = 200 // runes of a template, a parameter or a name; a refusal has 648 bytes in all
)

var (
	codeForm    = regexp.MustCompile(`^[A-Z][A-Z0-9]*(-[A-Z0-9]+)*$`)
	obligations = []string{"log_full", "notify_owner"}
)

// validate refuses a document that Go would have to guess about.
func (d *Decision) validate() error {
	switch {
	case d.Schema != DecisionSchema:
		return fmt.Errorf("%w: decision.schema is %d; want %d", ErrPolicy, d.Schema, DecisionSchema)
	case d.Effect != Allow && d.Effect != Deny:
		return fmt.Errorf("%w: decision.effect is %q; want allow or deny", ErrPolicy, d.Effect)
	case d.Effect == Allow && d.Remedy != "":
		return fmt.Errorf("%w: decision allows with remedy %q", ErrPolicy, d.Remedy)
	case d.Effect == Deny && !slices.Contains([]Remedy{RemedyNone, RemedyWait, RemedyWaiver}, d.Remedy):
		return fmt.Errorf("%w: decision.remedy is %q; want none, wait or waiver", ErrPolicy, d.Remedy)
	case d.Effect == Deny && (len(d.Codes) == 0 || len(d.Reasons) == 0):
		return fmt.Errorf("%w: decision denies without a code and a reason", ErrPolicy)
	case d.Effect == Deny && d.Visible:
		return fmt.Errorf("%w: decision denies and is visible", ErrPolicy)
	case d.Effect == Allow && len(d.Reasons) > 0:
		return fmt.Errorf("%w: decision allows with reasons against it", ErrPolicy)
	case !slices.IsSorted(d.Codes):
		return fmt.Errorf("%w: decision.codes %q are not sorted", ErrPolicy, d.Codes)
	}
	for _, code := range d.Codes {
		if !codeForm.MatchString(code) || len(code) > 40 {
			return fmt.Errorf("%w: decision.codes has %q; want upper case words with dashes", ErrPolicy, code)
		}
	}
	for _, o := range d.Obligations {
		if !slices.Contains(obligations, o.Kind) {
			return fmt.Errorf("%w: decision.obligations has kind %q; the gateway knows %s", ErrPolicy, o.Kind, strings.Join(obligations, ", "))
		}
	}
	for _, r := range slices.Concat(d.Reasons, d.Warnings) {
		if !codeForm.MatchString(r.Code) || r.Template == "" || len(r.Template) > maxField || r.Severity < 0 || r.Severity > 4 {
			return fmt.Errorf("%w: reason %q of rule %q has template %q, severity %d", ErrPolicy, r.Code, r.Rule, r.Template, r.Severity)
		}
	}
	return nil
}

// order puts reasons into the order in which they are shown, and keeps the first eight.
func order(reasons []Reason) []Reason {
	slices.SortStableFunc(reasons, func(a, b Reason) int {
		if a.Severity != b.Severity {
			return b.Severity - a.Severity
		}
		if c := strings.Compare(a.Code, b.Code); c != 0 {
			return c
		}
		return strings.Compare(a.Rule, b.Rule)
	})
	return reasons[:min(len(reasons), maxReasons)]
}

// hardness orders remedies: of several denials the hardest one counts.
func hardness(r Remedy) int {
	switch r {
	case RemedyNone:
		return 3
	case RemedyWaiver:
		return 2
	case RemedyWait:
		return 1
	}
	return 0
}

// Combine is the answer to both questions together: deny wins, of several denials the hardest remedy, and what each
// says is united. Two decisions that are not both an allow never combine to one.
func Combine(a, b Decision) Decision {
	d := Decision{
		Schema: DecisionSchema, Effect: Deny, Remedy: a.Remedy,
		Codes:       union(a.Codes, b.Codes),
		Reasons:     order(slices.Concat(a.Reasons, b.Reasons)),
		Warnings:    order(slices.Concat(a.Warnings, b.Warnings)),
		Obligations: slices.Concat(a.Obligations, b.Obligations),
		Waived:      slices.Concat(a.Waived, b.Waived),
		Waivers:     union(a.Waivers, b.Waivers),
		Profile:     first(a.Profile, b.Profile),
		Advice:      combineAdvice(a.Advice, b.Advice),
		Labels:      map[string]string{},
		Eval:        b.Eval, Projected: b.Projected,
	}
	if hardness(b.Remedy) > hardness(a.Remedy) {
		d.Remedy = b.Remedy
	}
	if a.Effect == Allow && b.Effect == Allow {
		d.Effect, d.Remedy, d.Visible = Allow, "", a.Visible && b.Visible
	} else if d.Remedy == "" {
		d.Remedy = RemedyNone
	}
	d.ValidUntilDay = a.ValidUntilDay
	if b.ValidUntilDay != nil && (a.ValidUntilDay == nil || *b.ValidUntilDay < *a.ValidUntilDay) {
		d.ValidUntilDay = b.ValidUntilDay
	}
	for _, labels := range []map[string]string{b.Labels, a.Labels} {
		for k, v := range labels {
			d.Labels[k] = v
		}
	}
	return d
}

func combineAdvice(a, b Advice) Advice {
	return Advice{
		UpgradeTo:        first(b.UpgradeTo, a.UpgradeTo),
		AvailableFromDay: max(a.AvailableFromDay, b.AvailableFromDay),
		MissingFacts:     union(a.MissingFacts, b.MissingFacts),
		Waiver:           Need{Code: first(a.Waiver.Code, b.Waiver.Code), Path: first(a.Waiver.Path, b.Waiver.Path)},
		Contact:          first(a.Contact, b.Contact),
	}
}

func union(a, b []string) []string {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
