package audit

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// hostile reports whether a rune may not reach the disk or a terminal as it is: controls, format characters
// (bidirectional overrides, zero width), line and paragraph separators, surrogates and private use.
// encoding/json and log/slog let DEL, U+0080 to U+009F, U+202E and U+200B through, so neither is enough.
func hostile(r rune) bool {
	if r < utf8.RuneSelf {
		return r < 0x20 || r == 0x7f
	}
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Cs, unicode.Co)
}

// EscapeTerminal returns s with every rune that could drive a terminal, and every byte that is not UTF-8, as the text \u{…}.
// Records are sanitised when written; whoever prints escapes again, since a log may have been altered.
func EscapeTerminal(s string) string {
	clean := true
	for i := 0; i < len(s) && clean; i++ {
		clean = s[i] >= 0x20 && s[i] < 0x7f
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 {
			r = rune(s[i])
		} else if !hostile(r) {
			b.WriteString(s[i : i+n])
			i += n
			continue
		}
		b.WriteString(`\u{` + strconv.FormatInt(int64(r), 16) + `}`)
		i += n
	}
	return b.String()
}
