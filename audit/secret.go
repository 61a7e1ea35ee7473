package audit

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
)

// secrets finds known kinds of credentials in text and replaces them by keyed fingerprints. A plain hash would not do:
// lists of leaked tokens could be matched against it.
type secrets struct {
	key   []byte // HMAC-SHA-256 key
	keyID string // first 8 hex digits of the key's SHA-256
}

func newSecrets(key []byte) *secrets {
	sum := sha256.Sum256(key)
	return &secrets{key: key, keyID: hex.EncodeToString(sum[:4])}
}

// fingerprint returns key id and HMAC-SHA-256 of the secret, cut to 128 bits.
func (s *secrets) fingerprint(secret []byte) string {
	mac := hmac.New(sha256.New, s.key)
	mac.Write(secret)
	return s.keyID + ":" + hex.EncodeToString(mac.Sum(nil)[:16])
}

// secretKinds are the credentials that are recognised: how they begin, what follows, and how much of it at least.
var secretKinds = [...]struct {
	prefix string
	least  int  // characters after the prefix
	exact  bool // exactly that many
	jwt    bool // two more parts, divided by dots
}{
	{prefix: "hg_", least: 24},
	{prefix: "ghp_", least: 20},
	{prefix: "gho_", least: 20},
	{prefix: "ghs_", least: 20},
	{prefix: "ghu_", least: 20},
	{prefix: "ghr_", least: 20},
	{prefix: "github_pat_", least: 20},
	{prefix: "glpat-", least: 20},
	{prefix: "AKIA", least: 16, exact: true},
	{prefix: "hvs.", least: 20},
	{prefix: "xox", least: 12},
	{prefix: "eyJ", least: 8, jwt: true},
}

// redact returns text with every credential replaced, and how many there were. Without any it returns text itself.
func (s *secrets) redact(text []byte) ([]byte, int) {
	if !suspicious(text) {
		return text, 0
	}
	var out []byte
	n, done := 0, 0
	for i := 0; i+3 < len(text); i++ {
		start, end := i, 0
		switch text[i] {
		case 'h', 'g', 'A', 'x', 'e':
			end = matchSecret(text, i)
		case ':':
			start, end = matchUserInfo(text, i)
		}
		if end == 0 {
			continue
		}
		out = append(out, text[done:start]...)
		out = append(out, "[redacted "...)
		out = append(out, s.fingerprint(text[start:end])...)
		out = append(out, ']')
		n, done, i = n+1, end, end-1
	}
	if n == 0 {
		return text, 0
	}
	return append(out, text[done:]...), n
}

// suspicious reports whether text may hold a credential, by looking for the rarest byte of each prefix: that costs a
// tenth of trying every position, and nearly all records end here.
func suspicious(text []byte) bool {
	before := func(i int, s string) bool { return bytes.HasSuffix(text[:i], []byte(s)) }
	return anyByte(text, '_', func(i int) bool {
		return before(i, "hg") || before(max(i-1, 0), "gh") || before(i, "github")
	}) || anyByte(text, '-', func(i int) bool { return before(i, "glpat") }) ||
		anyByte(text, 'K', func(i int) bool { return before(i, "A") }) ||
		anyByte(text, '.', func(i int) bool { return before(i, "hvs") }) ||
		anyByte(text, 'x', func(i int) bool { return before(i, "xo") }) ||
		anyByte(text, 'J', func(i int) bool { return before(i, "ey") }) ||
		anyByte(text, '@', func(i int) bool { return i > 0 && text[i-1] != '/' })
}

// anyByte reports whether test holds at any occurrence of c.
func anyByte(text []byte, c byte, test func(i int) bool) bool {
	for i := 0; ; i++ {
		j := bytes.IndexByte(text[i:], c)
		if j < 0 {
			return false
		}
		if i += j; test(i) {
			return true
		}
	}
}

// matchSecret returns where the credential that begins at i ends, or 0 if none begins there.
func matchSecret(text []byte, i int) int {
	switch text[i+1] { // second letters of the prefixes: nearly every candidate ends here
	case 'g', 'h', 'i', 'l', 'K', 'v', 'o', 'y':
	default:
		return 0
	}
	if i > 0 && alphanumeric(text[i-1]) {
		return 0
	}
	for _, k := range secretKinds {
		if !bytes.HasPrefix(text[i:], []byte(k.prefix)) {
			continue
		}
		end := skipToken(text, i+len(k.prefix))
		length := end - i - len(k.prefix)
		if length < k.least || k.exact && length != k.least {
			continue
		}
		if k.jwt {
			if end = skipParts(text, end); end == 0 {
				continue
			}
		}
		return end
	}
	return 0
}

// skipParts returns the end of the two dot-led parts of a JWT at i, or 0.
func skipParts(text []byte, i int) int {
	for range 2 {
		if i >= len(text) || text[i] != '.' {
			return 0
		}
		next := skipToken(text, i+1)
		if next == i+1 {
			return 0
		}
		i = next
	}
	return i
}

// matchUserInfo returns the bounds of "user:password" in a URL whose colon stands at i, or zeros.
func matchUserInfo(text []byte, i int) (start, end int) {
	if !bytes.HasPrefix(text[i:], []byte("://")) {
		return 0, 0
	}
	start = i + 3
	for j := start; j < len(text); j++ {
		switch text[j] {
		case '@':
			return start, j
		case '/', '"', ' ', '?', '[':
			return 0, 0
		}
	}
	return 0, 0
}

func skipToken(text []byte, i int) int {
	for i < len(text) && (alphanumeric(text[i]) || text[i] == '_' || text[i] == '-') {
		i++
	}
	return i
}

func alphanumeric(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}
