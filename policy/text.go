package policy

import (
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// TextOptions is what the refusal text needs beside the decision.
type TextOptions struct {
	Target   string // path@version, or path
	ID       string // decision id as shown to people
	Revision string // policy revision as shown to people
	AskURL   string // where a waiver can be asked for, without the id; "" leaves the line out
	WorksNow string // nearest version that is fit, "" if not known
}

// The go command shows the first 8 lines and 648 bytes of a plain-text body, up to the first blank line, and nothing
// at all if one rune is not printable (cmd/go/internal/web).
const (
	maxLines   = 8
	maxBytes   = 648
	maxColumns = 75
)

// Text is the refusal as the developer's terminal shows it. Whatever the decision and the options hold, it is at most
// 8 lines of at most 75 columns and 648 bytes of printable ASCII, with no blank line. An allow has no text.
func (d Decision) Text(o TextOptions) string {
	if d.Effect == Allow {
		return ""
	}
	lines := append(d.headlines(), o.Target)
	works, from := "", ""
	if now := first(o.WorksNow, d.Advice.UpgradeTo); now != "" {
		works = "works now: " + now
	}
	if d.Remedy == RemedyWait && d.Advice.AvailableFromDay > 0 {
		from = "available from: " + dayText(d.Advice.AvailableFromDay)
	}
	lines = append(lines, strings.TrimSpace(works+"    "+from))
	if d.Remedy == RemedyWait && len(d.Advice.MissingFacts) > 0 {
		lines = append(lines, "waits for: "+strings.Join(d.Advice.MissingFacts, ", "))
	}
	lines = append(lines, d.ask(o))
	last := "decision " + o.ID
	if o.Revision != "" {
		last += ", policy " + o.Revision
	}
	return fit(append(lines, last))
}

// ask is how to get a waiver: where to ask for one, else what it has to say; "" where none can help.
func (d Decision) ask(o TextOptions) string {
	need := d.Advice.Waiver
	if d.Remedy != RemedyNone && o.AskURL != "" {
		return "ask: " + strings.TrimSuffix(o.AskURL, "/") + "/" + o.ID
	}
	if d.Remedy == RemedyNone || need.Code == "" {
		return ""
	}
	var codes []string
	for _, r := range d.Reasons {
		if !slices.Contains(codes, r.Code) {
			codes = append(codes, r.Code)
		}
	}
	line := strings.TrimSpace("ask "+d.Advice.Contact) + ": waiver of " + strings.Join(codes, ", ")
	if whole := line + ", path " + need.Path; len(whole) <= maxColumns {
		return whole
	}
	return line // the line with the version has the path
}

// headlines are the code and sentence of each reason, at most three of them.
func (d Decision) headlines() []string {
	var lines []string
	for _, r := range d.Reasons {
		if len(lines) < 3 {
			lines = append(lines, r.Code+": "+r.Sentence())
		}
	}
	if len(lines) == 0 {
		return []string{strings.Join(append([]string{"DENIED"}, d.Codes...), " ") + ": not allowed"}
	}
	return lines
}

// Sentence is the template with its {params} filled in; one that is not given stays as it is.
func (r Reason) Sentence() string {
	pairs := make([]string, 0, 2*len(r.Params))
	for k, v := range r.Params {
		if k != "" {
			pairs = append(pairs, "{"+k+"}", v)
		}
	}
	return strings.NewReplacer(pairs...).Replace(r.Template)
}

// fit cleans and cuts lines to the limits. The last line names the decision, so it is kept before all others.
func fit(lines []string) string {
	clean := make([]string, 0, len(lines))
	for _, line := range lines {
		if line = printable(line); line != "" {
			clean = append(clean, line)
		}
	}
	if len(clean) > maxLines {
		clean = append(clean[:maxLines-1], clean[len(clean)-1])
	}
	last := clean[len(clean)-1]
	left := maxBytes - len(last) - 1
	var b strings.Builder
	for _, line := range clean[:len(clean)-1] {
		if len(line)+1 > left {
			break
		}
		left -= len(line) + 1
		b.WriteString(line)
		b.WriteByte('\n')
	}
	b.WriteString(last)
	b.WriteByte('\n')
	return b.String()
}

// printable is the line in printable ASCII, cut to the width of a terminal. What is not printable becomes "?":
// one such rune would make the go command discard the whole text.
func printable(line string) string {
	var b strings.Builder
	for _, r := range line {
		switch {
		case b.Len() == maxColumns:
			return strings.TrimSpace(b.String()[:maxColumns-3]) + "..."
		case r == '\t' || r == '\n' || r == '\r':
			b.WriteByte(' ')
		case r < 0x20 || r > 0x7e || r == utf8.RuneError:
			b.WriteByte('?')
		default:
			b.WriteRune(r)
		}
	}
	return strings.TrimSpace(b.String())
}

// dayText is a day number as a date.
func dayText(day int) string {
	return time.Unix(int64(day)*86400, 0).UTC().Format(time.DateOnly)
}
